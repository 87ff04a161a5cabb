"""Chromium, driven over its DevTools protocol by a pair of pipes: what a page shows, and what a press does."""

import base64
import json
import os
import shutil
import subprocess
import time

import cv2
import numpy as np
import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip


class Browser:
    """One tab. `with Browser(folder) as tab: tab.open(url)`."""

    def __init__(self, folder, width=1200, height=900):
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if chromium is None:
            pytest.skip("Chromium is not installed")
        theirs, self._out = os.pipe()
        self._in, back = os.pipe()
        line = f'exec "$@" 3<&{theirs} 4>&{back}'
        command = [chromium, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
        self._process = subprocess.Popen(
            ["bash", "-c", line, "-", *command], pass_fds=(theirs, back), stderr=subprocess.DEVNULL
        )
        os.close(theirs), os.close(back)
        self._number, self._read, self.events, self._session = 0, b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self.send(f"{domain}.enable")
        self.size(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        os.close(self._out), os.close(self._in)

    def send(self, method, **parameters):
        """A command's result; what the browser tells meanwhile is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                data = os.read(self._in, 1 << 20)
                assert data, "Chromium ended"
                self._read += data
            text, _, self._read = self._read.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def size(self, width, height, dark=False):
        """Of the window, in pixels of a page, and the colors that its user prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url):
        """Go to an address, and wait until the page is there."""
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def wait(self, condition, seconds=60):
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while True:
            try:
                if self.run(condition):
                    return
            except AssertionError:  # between two pages there is nothing to ask
                pass
            assert time.monotonic() < end, f"{condition} did not become true"
            time.sleep(0.05)

    def problems(self):
        """What the browser complained of: errors of scripts, of the policy, of images."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]
        return [*logged, *(str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown")]

    def pixels(self, left, top, width, height):
        """A part of the page, also of what has to be scrolled to: uint8 RGB [height, width, 3]."""
        clip = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        data = np.frombuffer(base64.b64decode(shot["data"]), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
