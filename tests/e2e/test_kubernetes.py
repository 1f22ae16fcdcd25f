"""The workflow on Kubernetes' executor and a bucket, with stand-ins for both servers on this machine's loopback.

A pod is a process in an empty folder, so that a job has only what the bucket holds and what is installed. Left out by
default; `make kubernetes` runs it with the plug-ins.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

import pytest

from tests.projects import copy_of_the_project, jsons, without_times

STEPS = "methods={ptmq: {settings: {iterations: 10}}}"
BUCKET, PREFIX = "my-bucket", "ptmq/"  # as in the profile
KEYS = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "a", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "b"}


class Server(BaseHTTPRequestHandler):
    """What both stand-ins share."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def query(self) -> dict[str, str]:
        return {key: value for key, (value, *_) in parse_qs(urlparse(self.path).query).items()}


class S3(Server):
    """One bucket: its objects are read, written, removed, looked for and listed."""

    objects: dict[str, tuple[bytes, float]]

    @property
    def key(self) -> str:
        return unquote(urlparse(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    def do_HEAD(self):
        if not self.key:
            self.answer(200)
        elif self.key in self.objects:
            data, written = self.objects[self.key]
            self.answer(200, **self.about(data, written), Content_Length=str(len(data)))
        else:
            self.answer(404)

    def do_GET(self):
        if not self.key:
            self.answer(200, self.listing(self.query.get("prefix", "")).encode())
        elif self.key in self.objects:
            data, written = self.objects[self.key]
            self.answer(200, data, **self.about(data, written))
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_PUT(self):
        self.objects[self.key] = (self.body(), time.time())
        self.answer(200)

    def do_DELETE(self):
        self.objects.pop(self.key, None)
        self.answer(204)

    def about(self, data: bytes, written: float) -> dict[str, str]:
        return {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last_Modified": formatdate(written, usegmt=True)}

    def listing(self, prefix: str) -> str:
        found = (
            f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(written))}</LastModified></Contents>"
            for key, (data, written) in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>"


class Kubernetes(Server):
    """Secrets, and jobs of one pod each."""

    secrets: dict[str, dict[str, str]]
    pods: dict[str, subprocess.Popen]
    limits: list[dict[str, str]]
    folder: Path  # in which each pod gets an empty one

    def do_POST(self):
        body = json.loads(self.body())
        name = body["metadata"]["name"]
        if self.path.endswith("/secrets"):
            self.secrets[name] = body["data"]
        else:
            self.start(name, body["spec"]["template"]["spec"]["containers"][0])
        self.json(201, body)

    def start(self, name: str, container: dict) -> None:
        self.limits.append(container["resources"]["limits"])
        environment = {key: value for key, value in os.environ.items() if key not in KEYS}
        for variable in container["env"]:
            secret = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = base64.b64decode(self.secrets[secret["name"]][secret["key"]]).decode()
        with (self.folder / f"{name}.log").open("w") as log:
            self.pods[name] = subprocess.Popen(
                [*container["command"], *container["args"]], stdout=log, stderr=log, env=environment,
                cwd=tempfile.mkdtemp(dir=self.folder),
            )  # fmt: skip

    def do_GET(self):
        path = urlparse(self.path).path
        if path.endswith("/log"):
            self.answer(200, (self.folder / f"{path.split('/')[-2]}.log").read_bytes())
        elif path.endswith("/pods"):
            name = self.query["labelSelector"].removeprefix("job-name=")
            code = self.pods[name].poll()
            state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
            container = {"name": "snakemake", "state": state, "image": "", "imageID": "", "ready": True,
                         "restartCount": 0}  # fmt: skip
            self.json(200, {"items": [{"metadata": {"name": name}, "status": {"containerStatuses": [container]}}]})
        else:  # a job's status
            code = self.pods[path.split("/")[-2]].poll()
            self.json(200, {"status": {} if code is None else {"failed": 1} if code else {"succeeded": 1}})

    def do_DELETE(self):
        self.body()
        self.json(200, {})

    def json(self, status: int, body: dict) -> None:
        self.answer(status, json.dumps(body).encode(), Content_Type="application/json")


@pytest.fixture
def servers(request, tmp_path):
    """Both stand-ins, each with the address where it listens."""
    if not request.config.getoption("--kubernetes"):
        pytest.skip("make kubernetes")
    for name in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_s3"):
        pytest.importorskip(name)
    (tmp_path / "pods").mkdir()
    S3.objects = {}
    Kubernetes.secrets, Kubernetes.pods, Kubernetes.limits, Kubernetes.folder = {}, {}, [], tmp_path / "pods"
    running = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (S3, Kubernetes)]
    for server in running:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in running]
    for server in running:
        server.shutdown()


def test_pods_that_share_nothing_but_a_bucket_give_the_records_of_the_local_run(servers, tmp_path):
    bucket, cluster = servers
    local, remote = (copy_of_the_project(tmp_path / name) for name in ("local", "remote"))
    command = [sys.executable, "-m", "snakemake", "all"]
    done = subprocess.run([*command, "--cores", "2", "--config", STEPS], cwd=local, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for pattern in ("ptmq/**/*.py", "baselines/*.py", "workflow/**/*.*"):  # the page's `aws s3 sync`
        for path in remote.glob(pattern):
            S3.objects[f"{PREFIX}{path.relative_to(remote)}"] = (path.read_bytes(), time.time())
    configuration = tmp_path / "kubeconfig"
    configuration.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": cluster}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }))  # fmt: skip
    installed = tmp_path / "bin" / "pip"  # pods install the storage plug-in; here it is there, and perhaps no internet
    installed.parent.mkdir()
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    path = os.pathsep.join([str(installed.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, "--profile", "workflow/profiles/kubernetes", "--storage-s3-endpoint-url", bucket, "--jobs", "2",
         "--config", STEPS, f"tracking_uri=sqlite:///{tmp_path}/mlflow.db"],
        cwd=remote, capture_output=True, text=True, env=os.environ | KEYS | {"PATH": path, "KUBECONFIG": configuration},
    )  # fmt: skip
    logs = [log.read_text() for log in (tmp_path / "pods").glob("*.log")]
    assert done.returncode == 0, "\n".join([done.stderr, *logs])
    assert Kubernetes.limits and {limits["nvidia.com/gpu"] for limits in Kubernetes.limits} <= {"0", "1"}
    assert len(jsons(local)) > 4
    for path in jsons(local):
        one, two = json.loads((local / path).read_text()), json.loads(S3.objects[f"{PREFIX}{path}"][0])
        assert without_times(one) == without_times(two), path
    assert f"{PREFIX}results/digits/tables/accuracy.md" in S3.objects
    assert json.loads(S3.objects[f"{PREFIX}results/digits/mlflow.json"][0])["records"] >= 3
