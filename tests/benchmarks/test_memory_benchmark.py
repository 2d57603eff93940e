"""The memory of a mining run's statistics does not grow with its images."""

import json
import subprocess
import sys
from pathlib import Path

CLASSES, LAYERS, WIDTH = 40, 24, 4096


def test_memory_does_not_grow_with_images(tmp_path):
    script = Path(__file__).with_name("memory.py")
    sizes = ["--classes", CLASSES, "--layers", LAYERS, "--width", WIDTH, "--images-per-class", 1, 2]
    command = [sys.executable, script, *sizes, "--shard-size", 8, "--batch-size", 4, "--folder", tmp_path, "--json"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    first, second = json.loads(done.stdout)
    dense = CLASSES * LAYERS * WIDTH * 3 * 8 / 2**20
    assert first["file"] > 0.49 * dense  # nothing was left out
    assert first["scored"] > 0
    image = LAYERS * WIDTH * 3 * 8 / 2**20  # 40 more images would be `dense` again
    assert second["scored"] < 10 * image
    assert not list(tmp_path.iterdir())
