"""Serve the files of a folder, and parts of them, as servers of imagery do.

    python tests/range_server.py FOLDER

Prints its port. A process of its own: GDAL holds Python's lock while it opens a file.
"""

import functools
import http.server
import re
import sys
from pathlib import Path


class Ranges(http.server.SimpleHTTPRequestHandler):
    "Answers requests for a range of bytes."

    def do_GET(self):
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not part or not path.is_file():
            return super().do_GET()
        data, (first, last) = path.read_bytes(), part.groups()
        last = min(int(last or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - int(first) + 1))
        self.end_headers()
        self.wfile.write(data[int(first) : last + 1])

    def log_message(self, *args):
        "Say nothing."


if __name__ == "__main__":
    handler = functools.partial(Ranges, directory=sys.argv[1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    print(server.server_port, flush=True)
    server.serve_forever()
