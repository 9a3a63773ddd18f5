"""Sample image files and what Pillow, datasets and transformers make of them.

Run with the versions below: python parity/image/generate.py [FOLDER OF JPEG PHOTOS]
It writes samples/ (small self-made files), expected.safetensors (their decoded pixels, resized pictures, CLIP pixel values) and
processors/ (what transformers saves), read by crates/mdpo/tests/image_parity.rs. It prints the worst difference between the two CLIP
processors of transformers; with a folder of photos, over those too.
"""

import io
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL
import torchvision
import transformers
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

for module, version in ((PIL, "13.0.0"), (datasets, "5.2.0"), (transformers, "5.23.0"), (torchvision, "0.26.0")):
    assert module.__version__.split("+")[0] == version, (module.__name__, module.__version__)

HERE = Path(__file__).parent
SAMPLES = HERE / "samples"
shutil.rmtree(SAMPLES, ignore_errors=True)
SAMPLES.mkdir()
rng = np.random.default_rng(0)


def scene(w, h):
    y, x = np.mgrid[0:h, 0:w]
    im = Image.fromarray(np.stack([x * 255 // (w - 1), y * 255 // (h - 1), (x * y) % 256], -1).astype(np.uint8))
    draw = ImageDraw.Draw(im)
    draw.ellipse([w // 5, h // 5, w * 3 // 5, h * 3 // 5], fill=(250, 20, 30))
    draw.rectangle([w // 2, h // 2, w * 4 // 5, h - 3], fill=(10, 200, 60))
    return im


def put(name, data):
    (SAMPLES / name).write_bytes(data)


def save(name, im, **options):
    out = io.BytesIO()
    im.save(out, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}[name.rsplit(".")[-1]], **options)
    put(name, out.getvalue())
    return out.getvalue()


im = scene(33, 21)
alpha = im.copy()
alpha.putalpha(Image.fromarray(((np.mgrid[0:21, 0:33][1] * 7) % 256).astype(np.uint8)))
palette = im.convert("P", palette=Image.ADAPTIVE, colors=16)

# JPEG: samplings, progressive, restart markers, grey, RGB without conversion, CMYK with and without Adobe's marker, YCCK.
for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
    save(f"jpeg_{name}.jpg", im, quality=85, subsampling=sampling)
save("jpeg_411.jpg", im, quality=85, subsampling="4:1:1")
save("jpeg_progressive_420.jpg", im, quality=85, subsampling=2, progressive=True)
save("jpeg_restart.jpg", im, quality=85, subsampling=2, restart_marker_blocks=2)
save("jpeg_rgb.jpg", im, quality=85, keep_rgb=True)
save("jpeg_grey.jpg", im.convert("L"), quality=85)
save("jpeg_grey_progressive.jpg", im.convert("L"), quality=85, progressive=True)
cmyk = save("jpeg_cmyk.jpg", im.convert("CMYK"), quality=85)
adobe = cmyk.index(b"\xff\xee")
put("jpeg_cmyk_no_adobe.jpg", cmyk[:adobe] + cmyk[adobe + 16 :])
put("jpeg_ycck.jpg", cmyk[: adobe + 15] + b"\2" + cmyk[adobe + 16 :])
save("jpeg_1x1.jpg", im.resize((1, 1)))
put("jpeg_trailing_bytes.jpg", (SAMPLES / "jpeg_444.jpg").read_bytes() + b"more after the end")

# Orientation: EXIF 1 to 8 and an unknown 9, in JPEG, PNG and WebP, and XMP.
exif = Image.Exif()
small = scene(9, 6)
for turn in range(1, 10):
    exif[0x0112] = turn
    save(f"turned_{turn}.png", small, exif=exif)
exif[0x0112] = 6
save("turned_6.jpg", im.convert("L"), exif=exif)
save("turned_6.webp", small, exif=exif, lossless=True)
xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
save("turned_8_xmp.jpg", im.convert("L"), xmp=xmp)


# PNG: what Pillow writes, and by hand the 16-bit kinds and the small depths that it does not write.
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, depth, colour, rows, width, extra=b""):
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    put(name, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b""))


save("png_rgb.png", im)
save("png_rgba.png", alpha)
save("png_grey.png", im.convert("L"))
save("png_grey_alpha.png", alpha.convert("LA"))
save("png_1_bit.png", im.convert("1"))
save("png_palette.png", palette)
save("png_palette_transparent.png", palette, transparency=3, bits=4)
save("png_grey_transparent.png", im.convert("L"), transparency=100)
save("png_rgb_transparent.png", im, transparency=(0, 0, 0))
png("png_grey_2_bit.png", 2, 0, [b"\x1b\xe4", b"\x00\xff"], 8)
png("png_grey_4_bit.png", 4, 0, [b"\x01\x23\x45\x67", b"\x89\xab\xcd\xef"], 8)
png("png_palette_index_out_of_range.png", 8, 3, [b"\0\1\2\5"], 4, chunk(b"PLTE", bytes(range(1, 10))))
grey16 = np.linspace(0, 65535, 180).astype(">u2").reshape(9, 20)
grey16[0, :12] = [0, 1, 127, 128, 255, 256, 257, 383, 384, 511, 512, 65280]
png("png_grey_16.png", 16, 0, [row.tobytes() for row in grey16], 20)
png("png_grey_16_transparent.png", 16, 0, [row.tobytes() for row in grey16], 20, chunk(b"tRNS", b"\1\0"))
for name, colour, channels in (("grey_alpha", 4, 2), ("rgb", 2, 3), ("rgba", 6, 4)):
    values = rng.integers(0, 65536, (9, 20, channels)).astype(">u2")
    png(f"png_{name}_16.png", 16, colour, [row.tobytes() for row in values], 20)

# WebP: lossy, lossless, with alpha, animated.
save("webp_lossy.webp", im, quality=80)
save("webp_lossless.webp", im, lossless=True)
save("webp_rgba.webp", alpha, quality=80)
save("webp_rgba_lossless.webp", alpha, lossless=True, exact=True)
save("webp_animated.webp", im, save_all=True, append_images=[im.transpose(0)], lossless=True)

# GIF: whole frames, and frames that leave part of the canvas free or reach over it.
save("gif_whole.gif", im)
save("gif_transparent.gif", palette, transparency=2)
save("gif_animated.gif", im, save_all=True, append_images=[im.transpose(0)])


def gif(name, canvas, frame, indices, transparent=None, local=b"", interlaced=0):
    bits = []
    for i, value in enumerate(indices):  # 3-bit codes, cleared so often that they never grow
        bits += [(code >> k) & 1 for code in ([4] if i % 2 == 0 else []) + [value] for k in range(3)]
    bits += [1, 0, 1]
    bits += [0] * (-len(bits) % 8)
    data = bytes(sum(bit << k for k, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    out = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x81, 2, 0) + bytes(range(10, 130, 10))
    if transparent is not None:
        out += b"\x21\xf9\x04" + bytes([1, 0, 0, transparent, 0])
    out += b"\x2c" + struct.pack("<HHHHB", *frame, (0x81 if local else 0) | interlaced << 6) + local
    put(name, out + bytes([2, len(data)]) + data + b"\0\x3b")


gif("gif_part.gif", (6, 4), (1, 1, 3, 2), [0, 1, 2, 3, 0, 1])
gif("gif_part_transparent.gif", (6, 4), (1, 1, 3, 2), [0, 1, 2, 3, 0, 1], transparent=3)
gif("gif_part_local_palette.gif", (6, 4), (1, 1, 3, 2), [0, 1, 2, 3, 0, 1], transparent=1, local=bytes(range(200, 212)))
gif("gif_over_the_edge.gif", (3, 2), (1, 1, 3, 2), [0, 1, 2, 3, 0, 1])
gif("gif_interlaced.gif", (3, 5), (0, 0, 3, 5), [i % 4 for i in range(15)], interlaced=1)

# BMP: depths, palettes, run lengths, top-down.
save("bmp_24.bmp", im)
save("bmp_8.bmp", im.convert("L"))
save("bmp_1.bmp", im.convert("1"))
save("bmp_palette.bmp", palette)
save("bmp_32.bmp", alpha)


def bmp(name, width, height, bits, data, compression=0, extra=b"", colours=0):
    start = 54 + len(extra)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    put(name, b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + extra + data)


table = b"".join(bytes([i * 3 % 256, i * 5 % 256, i * 7 % 256, 0]) for i in range(256))
bmp("bmp_555.bmp", 32, 32, 16, (np.arange(1024) * 31 % 32768).astype("<u2").tobytes())
bmp("bmp_565.bmp", 32, 32, 16, (np.arange(1024) * 63).astype("<u2").tobytes(), 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F))
bmp("bmp_top_down.bmp", 2, -2, 24, bytes([1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0]))
bmp("bmp_4.bmp", 8, 2, 4, b"\x01\x23\x45\x67\x89\xab\xcd\xef", 0, table[:64], 16)
bmp("bmp_rle8.bmp", 8, 2, 8, b"\x04\x11\x04\x22\0\0\x00\x05\1\2\3\4\5\0\3\7\0\1", 1, table, 256)
bmp("bmp_rle4.bmp", 8, 2, 4, b"\x04\x12\x04\x34\0\0\x08\x56\0\1", 2, table[:64], 16)

expected = {}
feature = datasets.Image()
for path in sorted(SAMPLES.iterdir()):
    picture = feature.decode_example({"path": None, "bytes": path.read_bytes()}).convert("RGB")
    expected[f"decode/{path.name}"] = np.asarray(picture)


# Resizing and CLIP, of pictures that the test makes by the same formula.
def noise(width, height):
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.uint64)
    value = ((x * 31 + y * 57 + c * 91) * 2654435761) % 2**32
    return Image.fromarray((value >> 24).astype(np.uint8))


for source in ((1, 1), (3, 500), (500, 3), (337, 201), (64, 64)):
    for target in ((1, 1), (7, 40), (40, 7), (31, 31)):
        for name, number in (("lanczos", 1), ("bilinear", 2), ("bicubic", 3)):
            out = noise(*source).resize(target, number)
            expected[f"resize/{name}/{source[0]}x{source[1]}/{target[0]}x{target[1]}"] = np.asarray(out)

shutil.rmtree(HERE / "processors", ignore_errors=True)
PROCESSORS = {
    "clip_336": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "clip_28": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    "old_ints": {"size": 20, "crop_size": 17, "resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
    "padded": {"size": {"shortest_edge": 9}, "crop_size": {"height": 14, "width": 23}},
    "exact_size": {"size": {"height": 11, "width": 24}, "do_center_crop": False},
    "no_resize": {"do_resize": False, "crop_size": {"height": 13, "width": 12}, "do_rescale": False, "image_mean": 7.5, "image_std": 3},
    "not_normalised": {"size": {"shortest_edge": 8}, "crop_size": 8, "do_normalize": False, "rescale_factor": 0.0078125, "resample": 1},
}
SIZES = [(1, 1), (3, 500), (500, 3), (337, 201), (336, 336), (64, 64), (13, 29)]


def both(options, picture):
    slow = CLIPImageProcessorPil(**options)(picture, return_tensors="np")["pixel_values"][0]
    fast = CLIPImageProcessor(**options)(picture, return_tensors="np")["pixel_values"][0]
    return slow, float(np.abs(slow.astype(np.float64) - fast.astype(np.float64)).max())


worst = {}
for name, options in PROCESSORS.items():
    folder = HERE / "processors" / name
    folder.mkdir(parents=True)
    if name.startswith("clip"):  # as transformers 5 writes it beside a tokenizer
        section = json.loads(CLIPImageProcessorPil(**options).to_json_string())
        whole = {"image_processor": section, "processor_class": "LlavaProcessor", "patch_size": 14}
        (folder / "processor_config.json").write_text(json.dumps(whole, indent=2) + "\n")
    else:
        old = {"image_processor_type": "CLIPImageProcessor", **options}
        (folder / "preprocessor_config.json").write_text(json.dumps(old, indent=2) + "\n")
    for size in SIZES:
        slow, gap = both(options, noise(*size))
        worst[name, size] = gap
        step = 16 if name == "clip_336" else 1  # every 16th row and column of the large ones
        expected[f"clip/{name}/{size[0]}x{size[1]}"] = np.ascontiguousarray(slow[:, ::step, ::step]).astype(np.float32)
print("worst difference between the Pillow and the torchvision processor, on noise:")
for key, gap in sorted(worst.items(), key=lambda item: -item[1])[:6]:
    print(f"  {gap:.2e}  {key}")
if len(sys.argv) > 1:
    gaps = [both(PROCESSORS["clip_336"], Image.open(path).convert("RGB"))[1] for path in sorted(Path(sys.argv[1]).glob("*.jpg"))]
    print(f"worst over {len(gaps)} photos: {max(gaps):.2e}")

save_file(expected, HERE / "expected.safetensors")
