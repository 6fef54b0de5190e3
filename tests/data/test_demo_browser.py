"""``spear demo`` in headless Chromium: a recording goes in, and the results are read off the page."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import yaml
from tagging_fixtures import TINY_ENCODER, make_clips, write_class_list
from test_finetune_tagging import CONFIG

from spear_lib.bin import finetune_tagging, transcribe

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
    ),
]
SECONDS = 120.0
"""A machine may be busy."""


def wait_for(condition: Callable, what: str):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come within {SECONDS:g} s")


class Page:
    """The page in a browser that notes what it asks for."""

    def __init__(self, url: str, microphone: Path):
        webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--window-size=1200,1800",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        service = webdriver.chrome.service.Service(DRIVER)
        self.driver = webdriver.Chrome(options=options, service=service)
        self.url = url
        self.open()

    def open(self) -> None:
        self.driver.get(self.url)
        wait_for(lambda: self.all("#audio input[type=file]"), "the page")

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def seen(self, selector: str) -> bool:
        return any(each.is_displayed() for each in self.all(selector))

    def text(self, selector: str) -> str:
        """Of the first such element."""
        found = self.all(selector)
        return (found[0].get_attribute("value") or found[0].text) if found else ""

    def drop(self, path: Path) -> None:
        self.all("#audio input[type=file]")[0].send_keys(str(path))

    def requests(self) -> list[str]:
        """Of the browser, since the last call."""
        messages = (json.loads(line["message"])["message"] for line in self.driver.get_log("performance"))
        sent = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
        return [each["request"]["url"] for each in sent]


@pytest.fixture(scope="module")
def utterance(trained_toy) -> Path:
    return sorted(trained_toy["folder"].glob("*.wav"))[0]


@pytest.fixture(scope="module")
def tagging_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    config = {
        **CONFIG,
        "classes": str(write_class_list(folder / "classes.csv")),
        "scratch": True,
        "encoder_config": TINY_ENCODER,
        "experiment_dir": str(folder / "run"),
        "dev_cuts": [str(make_clips(folder, "dev", 4))],
        "data": {**CONFIG["data"], "train_cuts": [str(make_clips(folder, "train", 8))]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    finetune_tagging.main(["--config", str(folder / "config.yaml"), "--data.mixing.enabled", "false"])
    return folder / "run"


@pytest.fixture(scope="module")
def server(trained_toy, tagging_run) -> Iterator[tuple[str, Path]]:
    """The address of a running page, and the folder in which it keeps uploads; it ends as it should."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'spear_lib[demo]'")
    temporary = tagging_run.parent / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "spear_lib.bin.demo", "--port", "0", "--average", "0", "--device", "cpu"]
    command += ["--experiment_dir", f"[{trained_toy['experiment']},{tagging_run}]", "--limits.seconds", "20"]
    command += ["--search.method", "greedy", "--limits.megabytes", "2", "--events.threshold", "0.05"]
    # A proxy that leads nowhere: the page must not ask for anything through it.
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with open(temporary.parent / "log.txt", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        def address() -> str | None:
            said = Path(log.name).read_text()
            assert process.poll() is None, said
            found = re.search(r"the page is at (http://127\.0\.0\.1:\d+)", said)
            return found and found[1]

        try:
            yield wait_for(address, "the server"), temporary
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(SECONDS)
        said = Path(log.name).read_text()
    assert status == 0 and "its uploads are removed" in said and "Traceback" not in said, said
    assert not list(temporary.glob("spear-demo-*"))


@pytest.fixture(scope="module")
def page(server, utterance) -> Iterator[Page]:
    page = Page(server[0], utterance)
    yield page
    page.driver.quit()


def test_a_recording_is_heard_and_nothing_leaves_the_machine(
    page, server, utterance, trained_toy, tmp_path, capsys
):
    assert not page.seen("#section-text") and not page.seen("#section-layers")
    page.drop(utterance)
    wait_for(lambda: page.seen("#layers img"), "the last part")
    arguments = ["--experiment_dir", str(trained_toy["experiment"]), "--average", "0"]
    transcribe.main([str(utterance), *arguments, "--search.method", "greedy"])
    text = capsys.readouterr().out.strip()
    assert page.text("#text textarea") == text != ""
    assert page.text("#facts p").startswith(f"{utterance.name}, ") and page.seen("#waveform img")
    assert page.seen("#tags img")
    for heading in page.all("#section-text button, #section-tags button"):
        if "Words" in heading.text or "Events" in heading.text:
            heading.click()
    first = text.split()[0]
    table = wait_for(
        lambda: first in page.text("#words") and page.text("#words"), "the words with their times"
    )
    assert {*text.split(), "confidence"} <= set(table.split("\n"))
    picture = tmp_path / "page.png"
    page.driver.save_screenshot(str(picture))
    from matplotlib.image import imread

    assert np.unique(imread(picture).reshape(-1, 4), axis=0).shape[0] > 500  # pictures, not an empty page
    assert {urlsplit(url).netloc for url in page.requests() if url.startswith("http")} == {
        urlsplit(server[0]).netloc
    }
    assert list(server[1].glob(f"spear-demo-*/*/{utterance.name}"))


def test_what_cannot_be_used_is_a_line_and_takes_the_old_results_away(page, utterance, tmp_path):
    page.open()
    page.drop(utterance)
    wait_for(lambda: page.seen("#layers img"), "the last part")
    page.open()
    corrupt = tmp_path / "corrupt.wav"
    corrupt.write_bytes(np.random.default_rng(0).bytes(9999))
    page.drop(corrupt)
    line = wait_for(lambda: page.text("#facts .failed"), "the error")
    assert line.startswith("error: corrupt.wav is no audio that can be read (") and "\n" not in line
    assert not page.seen("#section-waveform") and not page.seen("#section-text")
    page.open()
    long = tmp_path / "long.flac"
    soundfile.write(long, np.zeros(21 * 16000), 16000)
    page.drop(long)
    line = wait_for(lambda: page.text("#facts .failed"), "the error")
    assert "error: long.flac lasts 21.0 s (21 s), the page takes 20 s" in line
    page.open()
    large = tmp_path / "large.wav"
    soundfile.write(large, np.zeros((15 * 16000, 6)), 16000)
    page.drop(large)
    wait_for(lambda: "large.wav" in page.text(".toast-body"), "the limit of bytes")
    assert "2.0 M" in page.text(".toast-body") and not page.text("#facts")


def test_any_file_by_the_other_button(page, utterance, tmp_path):
    page.open()
    path = tmp_path / "speech.w64"
    soundfile.write(path, soundfile.read(utterance)[0], 16000, format="W64", subtype="PCM_16")
    page.all("input[type=file][data-testid^='Another kind']")[0].send_keys(str(path))
    wait_for(lambda: page.seen("#layers img"), "the last part")
    assert page.text("#facts p").startswith("speech.w64, ") and page.text("#text textarea")


def test_the_microphone(page):
    page.open()
    wait_for(lambda: page.all("#audio button[aria-label='Record audio']"), "the microphone")[0].click()
    wait_for(lambda: page.all("#audio .record-button"), "the button to record")[0].click()
    time.sleep(4)
    wait_for(lambda: page.all("#audio .stop-button"), "the button to stop")[0].click()
    wait_for(lambda: page.seen("#layers img") or page.text("#facts .failed"), "the last part")
    assert not page.text("#facts .failed") and page.text("#facts p") and page.text("#text textarea")


def test_other_names_of_the_server_are_refused(server):
    assert urllib.request.urlopen(server[0], timeout=SECONDS).status == 200
    request = urllib.request.Request(server[0], headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=SECONDS)
    assert refused.value.code == 400
