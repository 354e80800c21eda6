"""Models of the Hub by name: against a server on 127.0.0.1, in processes of their own, as its address is read when they start."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from foreign import write_folder

from gpt2flat.errors import DataError, UsageError
from gpt2flat.formats import hub
from gpt2flat.generate import main as generate

SHA = f"{1:040}"


class Hub(ThreadingHTTPServer):
    """One repository, "me/tiny", of the files of a folder; `asked` are the paths of all requests."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.asked = folder, []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        about = {"id": "me/tiny", "modelId": "me/tiny", "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
        tree = [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in files.items()
        ]
        known = {f"/api/models/me/tiny/revision/{name}": about for name in ("main", "v2", SHA)}
        known |= {"/api/models/me/tiny": about, f"/api/models/me/tiny/tree/{SHA}": tree}
        if path in known:
            self.answer(json.dumps(known[path]).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/me/tiny/resolve/{SHA}/") and path.rpartition("/")[2] in files:
            data = files[path.rpartition("/")[2]]
            self.answer(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA})
        else:
            self.answer(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET

    def answer(self, data, headers, status=200):
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    found = Hub(write_folder(tmp_path / "remote"))
    (tmp_path / "remote/pytorch_model.bin").write_bytes(b"not wanted")
    (tmp_path / "here").mkdir()
    yield found
    found.shutdown()
    found.server_close()


def command(server, *words):
    """A command in a process of its own, in the folder `here`."""
    root = server.folder.parent
    env = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(root / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    env |= {
        "PYTHONPATH": os.pathsep.join([str(Path(hub.__file__).parents[2]), env.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=root / "here", env=env
    )


LOAD = """
import sys
from gpt2flat import Model
for name in sys.argv[1:]:
    print(Model.from_pretrained(name, threads=1).logits([[1, 2]]).tolist())
"""


def test_a_model_of_the_hub(server):
    found = command(server, "-c", LOAD, server.folder, "me/tiny", "hf:me/tiny@v2")
    local, *fetched = found.stdout.splitlines() or [""]
    assert local and fetched == [local, local], found.stderr
    assert any("model.safetensors" in path for path in server.asked) and not any(
        "pytorch" in path for path in server.asked
    )
    missing = command(server, "-m", "gpt2flat.generate", "hf:you/none")
    assert missing.returncode == DataError.code and missing.stderr.count("\n") == 1
    assert "cannot be fetched from the Hub" in missing.stderr and "name their folder" in missing.stderr
    server.shutdown()
    server.server_close()
    again = command(server, "-m", "gpt2flat.generate", "hf:me/tiny", "-n", "4", "--temperature", "0")  # from the cache
    assert again.returncode == 0 and len(again.stdout.split()) == 4, again.stderr


def test_a_run_starts_from_the_hub(server):
    here = server.folder.parent / "here"
    (here / "text").write_bytes(bytes(range(11)) * 40)
    code = "from gpt2flat.formats import llmc; llmc.write_tokens('a.bin', list(open('text', 'rb').read()))"
    assert command(server, "-c", code).returncode == 0
    flags = ("--init", "hf:me/tiny", "--train-data", "a.bin", "--val-every", "0", "--steps", "2")
    done = command(server, "-m", "gpt2flat.train", *flags)
    assert done.returncode == 0 and "2 layers, 2 heads, 4 channels" in done.stdout, done.stderr
    assert 'init = "hf:me/tiny"' in (here / "runs/tiny-a-001/config.toml").read_text()
    server.shutdown()
    more = command(server, "-m", "gpt2flat.train", "--resume", *flags[:2], "--steps", "3")
    assert more.returncode == 0, more.stderr


@pytest.mark.parametrize("name, found", [
    ("gpt2", None), ("d12", None), ("hf:gpt2", "gpt2"), ("openai-community/gpt2", "openai-community/gpt2"), ("a/b/c", None),
    ("runs/x", None), ("no/model.bin", None), ("no/ckpt.pt", None), ("/a", None), ("../a", None), ("a/", None), ("./a", None),
    ("hf:a/b@main", "a/b@main"), ("a b/c", None), ("", None),
])  # fmt: skip
def test_which_names_go_to_the_hub(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub.repository(name) == found


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:a b", "hf:-a"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="expected hf:NAME or hf:OWNER/NAME"):
        hub.repository(name)


def test_without_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert generate(["hf:gpt2"]) == UsageError.code
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "pip install 'gpt2flat[hub]'" in told and "name their folder" in told
