#!/usr/bin/env python3
"""Write crates/demo/assets/fluent.png: the demo's 24 objects in the artwork that no model of it was trained on, 48×48 each, side by side.

usage: artwork.py PACKAGE OUT.png      (PACKAGE: the unpacked `npm pack @lobehub/fluent-emoji-3d@1.1.0`)
"""
import json, sys
from pathlib import Path

from PIL import Image, __version__

assert __version__ >= "10", __version__
# In the order of `Object` in crates/demo/src/scenes.rs, the code points of crates/demo/src/artwork.rs.
CODES = """1f436 1f9b4 1f431 1f41f 1f697 1f6a6 1f333 1f426 1f3e0 1f511 1f355 1f37a
           2615 1f36a 1f3b8 1f941 26bd 1f3c6 26f5 1f433 1f319 2b50 1f41d 1f33b""".split()
SIDE = 48

package, out = Path(sys.argv[1]), Path(sys.argv[2])
about = json.loads((package / "package.json").read_text())
assert (about["name"], about["version"], about["license"]) == ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT"), about
strip = Image.new("RGBA", (SIDE * len(CODES), SIDE))
for place, code in enumerate(CODES):
    # Pillow premultiplies before it resizes, so transparent pixels lend no colour.
    picture = Image.open(package / "assets" / f"{code}.webp").convert("RGBA").resize((SIDE, SIDE), Image.LANCZOS)
    strip.paste(picture, (place * SIDE, 0))
strip.save(out, optimize=True)
print(out, out.stat().st_size, "bytes")
