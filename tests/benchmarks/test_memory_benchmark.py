"""The memory of a mining run's statistics: bounded in images, and less than all sums at once in classes."""

import json
import subprocess
import sys
from pathlib import Path

CLASSES, LAYERS, WIDTH = 60, 24, 4096


def test_memory_grows_neither_with_images_nor_by_all_sums_at_once(tmp_path):
    script = Path(__file__).with_name("memory.py")
    sizes = ["--classes", CLASSES, "--layers", LAYERS, "--width", WIDTH, "--images-per-class", 1, 2]
    command = [sys.executable, script, *sizes, "--shard-size", 8, "--batch-size", 4, "--folder", tmp_path, "--json"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    first, second = json.loads(done.stdout)
    dense = CLASSES * LAYERS * WIDTH * 3 * 8 / 2**20
    assert first["file"] > 0.49 * dense  # nothing was left out
    assert 0 < first["scored"] < 0.9 * dense
    image = LAYERS * WIDTH * 3 * 8 / 2**20  # 60 more images would be `dense` again
    assert second["scored"] < 10 * image
    assert not list(tmp_path.iterdir())
