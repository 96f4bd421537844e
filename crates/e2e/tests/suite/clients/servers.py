"""A server for clients of every kind, over TLS: files, repositories of git, events, and what is echoed.

Its folder holds an index of Python's, one of npm's and one of cargo's, each with one package, and one repository. It says on
which port it listens, and on which it speaks gRPC and WebSocket, and what it was asked: a line each. Who does not bring the
secret, in the place that each of them has for it, is refused.
"""

import asyncio
import base64
import hashlib
import http.server
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent import futures

import grpc
import websockets

root, certificate, key, secret = sys.argv[1:5]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
NAME = "holmtest"


def write(path, content):
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def archive(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def python_index():
    wheel = f"{NAME}-1.0-py3-none-any.whl"
    info = f"{NAME}-1.0.dist-info"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr(f"{NAME}.py", "said = 'from the index'\n")
        zipped.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        zipped.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        zipped.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    write(f"simple/{NAME}/{wheel}", packed.getvalue())
    write(f"simple/{NAME}/index.html", f'<a href="{wheel}#sha256={digest}">{wheel}</a>')


def npm_index(port):
    package = {"name": NAME, "version": "1.0.0", "main": "index.js"}
    packed = archive({"package/package.json": json.dumps(package), "package/index.js": "module.exports = 'from npm'\n"})
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
    url = f"https://site.example:{port}/npm/{NAME}/-/{NAME}-1.0.0.tgz"
    write(f"npm/{NAME}/-/{NAME}-1.0.0.tgz", packed)
    dependencies = {NAME: "1.0.0"}
    locked = {
        "name": "app",
        "lockfileVersion": 3,
        "requires": True,
        "packages": {
            "": {"name": "app", "dependencies": dependencies},
            f"node_modules/{NAME}": {"version": "1.0.0", "resolved": url, "integrity": integrity},
        },
    }
    write("app/package.json", json.dumps({"name": "app", "dependencies": dependencies}))
    write("app/package-lock.json", json.dumps(locked))


def cargo_index(port):
    manifest = f'[package]\nname = "{NAME}"\nversion = "1.0.0"\nedition = "2021"\n'
    packed = archive({f"{NAME}-1.0.0/Cargo.toml": manifest, f"{NAME}-1.0.0/src/lib.rs": "// from the registry\n"})
    entry = {"name": NAME, "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
    entry["cksum"] = hashlib.sha256(packed).hexdigest()
    write(f"index/ho/lm/{NAME}", json.dumps(entry) + "\n")
    write("index/config.json", json.dumps({"dl": f"https://site.example:{port}/crates/{{crate}}/{{version}}.crate"}))
    write(f"crates/{NAME}/1.0.0.crate", packed)


def repository():
    bare = os.path.join(root, "git/repo.git")
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", bare], check=True)
    subprocess.run(["git", "-C", bare, "config", "http.receivepack", "true"], check=True)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def say(self, status, body, fields=()):
        print(f"asked {self.command} {self.path}", flush=True)
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # Asked for by all.
    def handle_expect_100(self):
        return self.brings_it() and super().handle_expect_100()

    def parse_request(self):
        return super().parse_request() and self.brings_it()

    def brings_it(self):
        basic = "Basic " + base64.b64encode(f"x-access-token:{secret}".encode()).decode()
        expected = basic if self.path.startswith("/git/") else f"Bearer {secret}"
        if self.headers.get_all("authorization") == [expected]:
            return True
        self.close_connection = True
        self.say(401, b"it is not there")
        return False

    def body(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        whole = b""
        while length := int(self.rfile.readline(), 16):
            whole += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/git/"):
            return self.git()
        if path == "/events":
            return self.events()
        file = os.path.join(root, path.lstrip("/"))
        file = os.path.join(file, "index.html") if os.path.isdir(file) else file
        if not os.path.isfile(file):
            return self.say(404, b"")
        with open(file, "rb") as content:
            self.say(200, content.read(), [("content-type", "text/html" if file.endswith("html") else "application/octet-stream")])

    def do_POST(self):
        if self.path.startswith("/git/"):
            return self.git()
        self.say(200, self.body())

    def events(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\n\n".encode())
            # The next is said once the client has told that it read this one.
            if not heard_of_event.acquire(timeout=20):
                return
        self.close_connection = True

    def do_PUT(self):
        self.body()
        heard_of_event.release()
        self.say(204, b"")

    def git(self):
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": os.path.join(root, "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path.removeprefix("/git"),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "REMOTE_USER": "somebody",
        }
        backend = subprocess.run(["git", "http-backend"], input=self.body(), env=environment, stdout=subprocess.PIPE)
        head, _, body = backend.stdout.partition(b"\r\n\r\n")
        fields = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
        status = next((int(value.split()[0]) for name, value in fields if name == "Status"), 200)
        self.say(status, body, [field for field in fields if field[0] != "Status"])


class Rpc(grpc.GenericRpcHandler):
    def service(self, details):
        if dict(details.invocation_metadata).get("x-api-key") != secret:
            return grpc.unary_unary_rpc_method_handler(self.refuse)
        handlers = {
            "/holm.Test/One": grpc.unary_unary_rpc_method_handler(self.one),
            "/holm.Test/Many": grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request] * 3)),
            "/holm.Test/Joined": grpc.stream_unary_rpc_method_handler(lambda requests, _: b"".join(requests)),
            "/holm.Test/Both": grpc.stream_stream_rpc_method_handler(lambda requests, _: (said for said in requests)),
            "/holm.Test/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }
        return handlers.get(details.method)

    def one(self, request, call):
        call.set_trailing_metadata((("after", "yes"),))
        return request

    def refuse(self, _, call):
        call.abort(grpc.StatusCode.UNAUTHENTICATED, "it is not there")

    def fail(self, _, call):
        call.abort(grpc.StatusCode.NOT_FOUND, "there is none")


def speak_grpc():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Rpc(),))
    with open(key, "rb") as private, open(certificate, "rb") as public:
        credentials = grpc.ssl_server_credentials([(private.read(), public.read())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


async def speak_websocket(ports):
    async def echo(socket):
        async for said in socket:
            await socket.send(said)

    async def brings_it(path, _):
        return None if path.endswith(f"?key={secret}") else (http.HTTPStatus.UNAUTHORIZED, [], b"it is not there")

    server = await websockets.serve(echo, "127.0.0.1", 0, ssl=context, max_size=None, process_request=brings_it)
    ports.append(server.sockets[0].getsockname()[1])
    started.release()
    await asyncio.Future()


heard_of_event, started, ports = threading.Semaphore(0), threading.Semaphore(0), []
web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
web.daemon_threads = True
web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
port = web.server_address[1]
python_index()
npm_index(port)
cargo_index(port)
repository()
rpc, rpc_port = speak_grpc()
threading.Thread(target=lambda: asyncio.run(speak_websocket(ports)), daemon=True).start()
started.acquire()
print(f"ports {port} {rpc_port} {ports[0]}", flush=True)
web.serve_forever()
