"""What TensorFlow Serving's REST interface is asked for files, of a model that `shardline-export` made.

    docker run --rm -p 127.0.0.1:8501:8501 -e MODEL_NAME=model \\
      --mount type=bind,source=$PWD/exported/saved_model,target=/models/model/1 tensorflow/serving
    python examples/serving_request.py http://127.0.0.1:8501/v1/models/model:predict photo.jpg ...
"""

from __future__ import annotations

import base64
import json
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path


def body(paths: Sequence[str]) -> bytes:
    """The request: an instance a file, its bytes in base 64, as
    https://www.tensorflow.org/tfx/serving/api_rest#encoding_binary_values has it."""
    files = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
    return json.dumps({"signature_name": "serving_default", "instances": [{"b64": file} for file in files]}).encode()


def main(url: str, paths: Sequence[str]) -> None:
    """Print a line for each file: its class and probability, or why it was refused."""
    request = urllib.request.Request(url, body(paths), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        predictions = json.load(answer)["predictions"]
    for path, found in zip(paths, predictions, strict=True):
        told = f"{found['label']} {found['probability']:.3f}" if found["status"] == "ok" else found["status"]
        print(path, told)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
