"""The page in a browser."""

import json
import shutil
import socket
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, make_masked_lm, randomize

from keras_igpt.commands.main import main
from keras_igpt.demo import page, pictures

# What Gradio itself does with pandas.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in ("'future.no_silent_downcasting' is deprecated", "The copy keyword is deprecated")
]

BINARIES = [shutil.which(name) for name in ("chromium", "chromedriver")]


def test_the_command_opens_the_model_that_is_named(monkeypatch):
    given = []
    monkeypatch.setattr("keras_igpt.commands.demo.import_gradio", lambda: None)
    monkeypatch.setattr("keras_igpt.commands.demo.launch", lambda *args, **options: given.append((args, options)))
    main(["demo", "--model", "igpt_cifar10_8x8_bert", "--port", "8123", "--no-browser"])
    (((model, *others), options),) = given
    assert type(model).__name__ == "ImageGPTMaskedLM"
    assert (others, options) == (["igpt_cifar10_8x8_bert", 8123], {"browser": False})


@pytest.fixture(scope="module")
def gradio():
    if keras.backend.backend() != "torch":
        pytest.skip("the page is the same on each backend, and PyTorch starts fastest")
    return pytest.importorskip("gradio")


def test_a_port_that_is_taken_is_named(gradio, palette):
    model = make_causal_lm(palette)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"`port` must be free.*Received: port={port}"):
            page.launch(model, "igpt_cifar10_8x8", port, browser=False, wait=False)
    with pytest.raises(ValueError, match="`port`"):
        page.launch(model, "igpt_cifar10_8x8", 99_999, browser=False, wait=False)


def test_other_web_pages_may_not_ask(gradio, palette):
    address = page.launch(make_causal_lm(palette, num_layers=1), "igpt_cifar10_8x8", browser=False, wait=False)
    here = urlsplit(address).netloc

    def status(path, **headers):
        request = Request(f"http://{here}{path}", headers=headers, data=b"{}" if path.endswith("upload") else None)
        try:
            with build_opener(ProxyHandler({})).open(request) as answer:
                return answer.status
        except HTTPError as error:
            return error.code

    try:
        forwarded = here.replace("127.0.0.1", "localhost")
        assert status("/") == status("/", Host=forwarded) == status("/config", Origin=f"http://{here}") == 200
        assert status("/config", Host="localhost:9", Origin="http://localhost:9") == 200  # a tunnel
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://{forwarded}"},
            {"Host": "evil.example"},
            {"Host": here.replace("127.0.0.1", "127.0.0.1.evil.example")},
        ):
            assert status("/config", **headers) == status("/gradio_api/upload", **headers) == 403
        assert status("/gradio_api/upload", Origin=f"http://{here}") not in (200, 403)  # no file
    finally:
        gradio.close_all()


@pytest.fixture(scope="module")
def browser(gradio):
    """Chromium with a log of its requests."""
    selenium = pytest.importorskip("selenium.webdriver")
    if not all(BINARIES):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = BINARIES[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(BINARIES[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(gradio, browser, monkeypatch):
    """Opens the page of a model in the browser; afterwards, neither the browser nor this process went elsewhere."""
    called, connect = [], socket.socket.connect

    def recording(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            called.append(address[0])
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recording)
    browser.get_log("performance")

    def open_page(model, name):
        browser.get(page.launch(model, name, browser=False, wait=False))
        return Hands(browser)

    yield open_page
    gradio.close_all()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(addresses) > 20
    assert {urlsplit(address).hostname for address in addresses if not address.startswith(("data:", "blob:"))} == {
        "127.0.0.1"
    }
    assert not any(message["method"] == "Network.webSocketCreated" for message in messages)
    assert set(called) <= {"127.0.0.1", "localhost", "::1"}


class Hands:
    """What a person does and sees."""

    def __init__(self, browser):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.wait = browser, WebDriverWait(browser, 30, poll_frequency=0.1).until
        self.images("chosen", 2)

    def press(self, element_id):
        self.wait(lambda browser: browser.find_element("id", element_id).is_displayed())
        self.browser.find_element("id", element_id).click()

    def open_tab(self, name):
        tabs = self.browser.find_elements("css selector", "button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def upload(self, path):
        self.wait(lambda browser: browser.find_elements("css selector", "input[type=file]"))[0].send_keys(str(path))

    def images(self, element_id, count):
        """Waits until there are so many images, and all of them have been decoded; returns their addresses."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(i => i.complete && i.naturalWidth > 0 && i.src)"
        )

        def all_there(browser):
            found.append(browser.execute_script(script, f"#{element_id} img"))
            return len(found[-1]) == count and all(found[-1])

        found = []
        self.wait(all_there)
        return found[-1]

    def click_at(self, element_id, row, column, size):
        """Clicks the middle of a pixel of an image that shows `size` rows."""
        from selenium.webdriver import ActionChains

        image = self.wait(lambda browser: browser.find_element("css selector", f"#{element_id} img"))
        self.wait(lambda browser: image.size["width"] > 0)
        # Offsets count from the image's centre.
        side = min(image.size.values()) / size
        places = (round((place + 0.5 - size / 2) * side) for place in (column, row))
        ActionChains(self.browser).move_to_element_with_offset(image, *places).click().perform()

    def text(self, element_id):
        return self.browser.find_element("id", element_id).text

    def told(self, part):
        self.wait(lambda browser: any(part in e.text for e in browser.find_elements("class name", "toast-body")))


@pytest.fixture
def upload(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "noise.png"
    image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype("uint8")).save(path)
    return path


def test_a_person_uploads_a_picture_and_sees_all_tabs(opened, upload, palette, monkeypatch):
    hands = opened(randomize(make_causal_lm(palette)), "igpt_cifar10_8x8")
    before = hands.images("chosen", 2)
    hands.upload(upload)
    hands.wait(lambda _: set(hands.images("chosen", 2)).isdisjoint(before))
    hands.press("draw")
    assert len(set(hands.images("drawn", 6))) == 6
    assert hands.text("drawn").split("\n") == ["seen", *(f"sample {number}" for number in range(1, 5)), "original"]

    hands.open_tab("Surprise")
    hands.press("score")
    hands.images("surprise", 3)
    assert "bits per pixel of the palette picture. All 16 colours equally probable would be 4.00." in hands.text(
        "surprise"
    )
    hands.open_tab("Attention")
    hands.click_at("clicked", row=2, column=1, size=4)
    hands.images("maps", 2)
    assert "Where block 1 looks to predict row 2, column 1" in hands.text("maps")
    hands.open_tab("Depth")
    hands.wait(lambda browser: "45.1% [44.1, 46.1] at depth 7" in browser.find_element("tag name", "body").text)

    # Another picture clears what the tabs showed of this one.
    hands.browser.find_element("css selector", "#pictures button").click()
    hands.images("drawn", 0)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    # The browser tells nothing of the same file again.
    hands.upload(upload.rename(upload.with_stem("again")))
    hands.told("Pictures must have at most")


def test_a_person_chooses_a_hole_for_a_bert_model(opened, upload, palette, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "MAX_FILE_SIZE", "2kb")
    hands = opened(randomize(make_masked_lm(palette)), str(tmp_path / "igpt.keras"))
    hands.upload(upload)
    hands.told("exceed the maximum allowed size")
    for corner in ((0, 0), (1, 2)):
        before = hands.images("hole", 1)
        hands.click_at("hole", *corner, size=4)
        hands.wait(lambda _, before=before: hands.images("hole", 1) != before)
    hands.press("draw")
    hands.images("drawn", 6)
    hands.open_tab("Depth")
    assert hands.wait(lambda browser: "No probe report stands beside" in browser.find_element("tag name", "body").text)
