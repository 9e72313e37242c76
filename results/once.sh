# For the scripts of this folder, which run it first: . "$(dirname "$0")/../once.sh"
# once RESULT COMMAND...: measure what the run "$at" has no file of yet; a result that is there is not measured again.
once() {
    kept=$at/eval/$1
    shift
    test -e "$kept" || "$@"
}
