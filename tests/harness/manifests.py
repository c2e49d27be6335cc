"""A web server with one file, for those who send the header `X-Token: open`.

    manifests.py ADDRESS PORT FILE
"""

import http.server
import pathlib
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("X-Token") != "open":
            self.send_error(403)
            return
        body = pathlib.Path(sys.argv[3]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
