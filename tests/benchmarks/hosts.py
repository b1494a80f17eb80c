"""What servers of tests run, in a file that is imported in no time."""

import signal
from http.server import BaseHTTPRequestHandler, HTTPServer


def serve_nothing(settings):
    raise RuntimeError(f"as told: {settings['why']}")


def serve_without_end(settings):
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    HTTPServer(("127.0.0.1", settings["port"]), Answer).serve_forever()
