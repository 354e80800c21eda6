"""A web server on 127.0.0.1 for tests of downloads: it can drop, lie, redirect and stall, and remembers what was asked."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Use it in a `with`. files: {name: bytes}; faults: {name: iterator of answers, given before proper ones};
    tags: {name: its ETag}; requests: [(name, Range header or None), ...]. An answer is a function of (handler, data, first byte asked for)."""

    daemon_threads = True

    def __init__(self, files=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.tags = dict(files), {}, [], {}
        self.address = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name, asked = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        self.server.requests.append((name, asked))
        answer = next(iter(self.server.faults.get(name, ())), serve)
        with contextlib.suppress(OSError):  # of a client that went away
            answer(self, self.server.files.get(name), int(asked[6:-1]) if asked else 0)

    def end_headers(self):
        self.send_header("Connection", "close")  # or wget asks the next thing of a connection that is being closed
        super().end_headers()

    def log_message(self, *args):
        pass


def serve(to, data, start, until=None):
    """A proper answer; with `until` the connection ends before that byte of the file."""
    if data is None:
        return to.send_error(404)
    if start >= len(data):
        return to.send_error(416)
    to.send_response(206 if start else 200)
    if tag := to.server.tags.get(to.path.rsplit("/", 1)[-1]):
        to.send_header("ETag", tag)
    if start:
        to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    to.send_header("Content-Length", str(len(data) - start))
    to.end_headers()
    to.wfile.write(data[start:until])


def cut(until):
    return lambda to, data, start: serve(to, data, start, until)


def ignore_range(to, data, start):
    serve(to, data, 0)


def error(status):
    return lambda to, data, start: to.send_error(status)


def hang_up(to, data, start):
    to.connection.close()


def elsewhere(to, data, start, until=None):
    """A redirection, behind which the file is served."""
    if to.path.startswith("/elsewhere/"):
        return serve(to, data, start, until)
    to.send_response(302)
    to.send_header("Location", "/elsewhere" + to.path)
    to.end_headers()
