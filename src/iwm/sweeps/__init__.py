"""Many runs: conditioning, difficulty and capacity beside each other."""
