"""A local server with the HTTP API of the Hugging Face hub, for one repository."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

from tests.support.runs import ROOT


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The HTTP API that huggingface_hub needs for `owner/name`, revisions main and v1."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, status=200, **headers):
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        sha = "a" * 40
        self.server.requests.append(self.path)
        path = self.path.partition("?")[0]
        if path in (f"/api/models/owner/name/revision/{rev}" for rev in ("main", "v1")):
            files = [{"rfilename": name} for name in self.server.files]
            return self.answer(
                json.dumps({"id": "owner/name", "sha": sha, "siblings": files}).encode()
            )
        if path.startswith("/api/models/owner/name/tree/"):
            rows = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(body),
                    "oid": hashlib.sha1(body).hexdigest(),
                }
                for name, body in self.server.files.items()
            ]
            return self.answer(json.dumps(rows).encode())
        found = re.fullmatch(rf"/owner/name/resolve/(?:main|v1|{sha})/(.+)", path)
        if found and found[1] in self.server.files:
            body = self.server.files[found[1]]
            tag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(body, X_Repo_Commit=sha, ETag=tag)
        code = "EntryNotFound" if path.startswith("/owner/name/") else "RepoNotFound"
        return self.answer(b"", 404, X_Error_Code=code)

    do_HEAD = do_GET


def run_beside_a_hub(tmp_path, files, code, *arguments) -> str:
    """Returns what code prints that reads hf://owner/name, a repository of these files."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as hub:
        hub.requests, hub.files = [], files
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    return done.stdout
