//! Clients as they are, which were told nothing: what they ask for is seen, decided and passed on, with a secret that the server
//! demands and that none of them ever sees.

use std::{fs, process::Command};

use holm_e2e::{Running, World, host::is_root, names::NameServer, ran::Ran};

use crate::site::{SITE, certified, names};

/// What the server demands.
const SECRET: &str = "s3cret-of-the-clients-6f1c";

/// What is asked: files, packages, repositories, calls and sockets.
const SERVER: &str = include_str!("servers.py");

/// An installation, and a server for its runs that only its host trusts.
struct Clients {
    world: World,
    _names: NameServer,
    server: Running,
    port: u16,
    rpc_port: u16,
    socket_port: u16,
}

impl Clients {
    fn new() -> Self {
        let names = names();
        let mut world = World::new();
        let pki = certified();
        let path = |name: &str| world.dir().join(name);
        let (authority, certificate, key) = (path("authority.pem"), path("certificate.pem"), path("key.pem"));
        for (path, text) in [(&authority, &pki.authority), (&certificate, &pki.certificate), (&key, &pki.key)] {
            fs::write(path, text).expect("a file");
        }
        let mut command = Command::new("/usr/bin/python3");
        let mut server =
            Running::start(command.args(["-c", SERVER]).arg(path("site")).arg(certificate).arg(key).arg(SECRET));
        server.says("ports ");
        server.says("\n");
        let said = server.stdout();
        let mut ports = said.trim().split(' ').skip(1).map(|port| port.parse().expect("a port"));
        let mut port = || ports.next().expect("three ports");
        let (port, rpc_port, socket_port) = (port(), port(), port());
        let (asked, trust) = (names.address(), authority.display().to_string());
        world.start_up_with(&["--host-name-server", &asked, "--host-reach", "127.0.0.1", "--host-trust", &trust]);
        let file = world.dir().join("secret");
        fs::write(&file, SECRET).expect("a file");
        let from = file.display().to_string();
        let bound = [port, rpc_port, socket_port].map(|port| format!("{SITE}:{port}"));
        let bound = bound.iter().flat_map(|rule| ["--for", rule]);
        world.holm(["secret", "set", "KEY", "--from-file", &from].into_iter().chain(bound)).succeeds();
        Self { world, _names: names, server, port, rpc_port, socket_port }
    }

    /// What a script says that may ask for what is below `path`.
    fn script(&self, methods: &str, path: &str, text: &str) -> Ran {
        self.run(&[], &format!("{methods} {SITE}:{}{path}", self.port), &["/bin/sh", "-euc", text])
    }

    fn run(&self, flags: &[&str], rule: &str, command: &[&str]) -> Ran {
        let credentials = self.credentials();
        let credentials = credentials.iter().flat_map(|credential| ["--credential", credential]);
        let ran = self.world.run(
            ["--allow", rule]
                .iter()
                .chain(flags)
                .copied()
                .chain(credentials)
                .chain(["--"])
                .chain(command.iter().copied()),
        );
        assert!(!format!("{ran}").contains(SECRET), "{ran}");
        ran
    }

    /// Where each of the servers has the secret.
    fn credentials(&self) -> [String; 4] {
        let Self { port, rpc_port, socket_port, .. } = self;
        [
            format!("{SITE}:{port}=bearer:KEY"),
            format!("{SITE}:{port}/git=basic:x-access-token:KEY"),
            format!("{SITE}:{rpc_port}=header:x-api-key:KEY"),
            format!("{SITE}:{socket_port}=query:key:KEY"),
        ]
    }

    fn url(&self) -> String {
        format!("https://{SITE}:{}", self.port)
    }

    /// How often something was pushed.
    fn written(&self) -> usize {
        self.server.stdout().matches("asked POST /git/repo.git/git-receive-pack").count()
    }
}

#[test]
fn git_clones_and_pushes() {
    let clients = Clients::new();
    let url = format!("{}/git/repo.git", clients.url());
    let text = format!(
        "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
cd /tmp
git clone --quiet {url} one 2>/dev/null
cd one
head -c 3000000 /dev/urandom > large
git add large
git commit --quiet --message first
git push --quiet origin HEAD:main
git clone --quiet {url} ../two
cmp large ../two/large
echo same"
    );
    assert_eq!(clients.script("GET,POST", "/git/repo.git", &text).succeeds().text(), "same\n");
    let written = clients.written();
    // Who may read only does not write.
    let reads = format!(
        "cd /tmp && git clone --quiet {url} one && cd one && git -c user.name=a -c user.email=a@b commit --quiet \
         --allow-empty --message second && ! git push --quiet origin HEAD:main"
    );
    let allows = ["GET", "POST"].map(|method| {
        let path = if method == "GET" { "/git/repo.git" } else { "/git/repo.git/git-upload-pack" };
        format!("{method} {SITE}:{}{path}", clients.port)
    });
    let flags = ["--allow", &allows[1]];
    clients.run(&flags, &allows[0], &["/bin/sh", "-euc", &reads]).succeeds().complains_of(&["403"]);
    assert!(written > 0 && clients.written() == written, "{}", clients.server.stdout());
}

#[test]
fn pip_installs_from_an_index() {
    let clients = Clients::new();
    let text = format!(
        "/usr/bin/python3 -m pip install --quiet --no-input --disable-pip-version-check --no-cache-dir --target /tmp/site \
         --index-url {}/simple holmtest
PYTHONPATH=/tmp/site /usr/bin/python3 -c 'import holmtest; print(holmtest.said)'",
        clients.url()
    );
    assert_eq!(clients.script("GET", "/simple", &text).succeeds().text(), "from the index\n");
}

#[test]
fn npm_installs_what_is_locked() {
    let clients = Clients::new();
    let text = format!(
        "mkdir /tmp/app && cd /tmp/app
curl --silent --show-error --fail --remote-name-all {url}/app/package.json {url}/app/package-lock.json
npm ci --silent --no-audit --no-fund --no-update-notifier --registry {url}/npm/
node -p 'require(\"holmtest\")'",
        url = clients.url()
    );
    assert_eq!(clients.script("GET", "/", &text).succeeds().text(), "from npm\n");
}

/// The toolchain is lent: it lies in a home, which no run sees.
#[test]
fn cargo_fetches_from_a_registry() {
    if !is_root() {
        return;
    }
    let clients = Clients::new();
    let toolchain = holm_e2e::ran::run(Command::new("rustc").args(["--print", "sysroot"])).succeeds().word();
    let text = format!(
        "mkdir -p /tmp/app/src /tmp/app/.cargo && cd /tmp/app && touch src/lib.rs
printf '[package]\\nname = \"app\"\\nversion = \"1.0.0\"\\nedition = \"2021\"\\n[dependencies]\\nholmtest = {{ version = \"1\", registry = \"site\" }}\\n' > Cargo.toml
printf '[registries.site]\\nindex = \"sparse+{}/index/\"\\n' > .cargo/config.toml
PATH=/opt/rust/bin:$PATH CARGO_HOME=/tmp/cargo cargo fetch --quiet
cat /tmp/cargo/registry/src/*/holmtest-1.0.0/src/lib.rs",
        clients.url()
    );
    let rule = format!("GET {SITE}:{}/", clients.port);
    let mount = format!("{toolchain}:/opt/rust");
    let ran = clients.run(&["--mount", &mount], &rule, &["/bin/sh", "-euc", &text]).succeeds();
    assert_eq!(ran.text(), "// from the registry\n");
}

#[test]
fn requests_and_fetch_and_curl_send_and_receive() {
    let clients = Clients::new();
    let url = format!("{}/echo", clients.url());
    for (client, text) in [
        ("curl", format!("curl --silent --show-error --fail --data-binary @- {url} < /tmp/said")),
        (
            "requests",
            format!(
                "/usr/bin/python3 -c 'import requests, sys; sys.stdout.buffer.write(requests.post(\"{url}\", data=iter([open(\"/tmp/said\", \"rb\").read()])).content)'"
            ),
        ),
        (
            "fetch",
            format!(
                "node -e 'fetch(\"{url}\", {{method: \"POST\", body: require(\"fs\").readFileSync(\"/tmp/said\")}}).then(r => r.arrayBuffer()).then(b => process.stdout.write(Buffer.from(b)))'"
            ),
        ),
    ] {
        let text = format!("head -c 5000000 /dev/urandom > /tmp/said\n{text} | cmp - /tmp/said && echo same");
        assert_eq!(clients.script("POST", "/echo", &text).succeeds().text(), "same\n", "{client}");
    }
}

#[test]
fn grpc_calls_in_all_four_ways_with_what_follows_its_answers() {
    let clients = Clients::new();
    let program = r#"
import grpc, sys
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials())
one, call = channel.unary_unary("/holm.Test/One").with_call(b"said", timeout=60)
print(one.decode(), dict(call.trailing_metadata())["after"])
print(*[said.decode() for said in channel.unary_stream("/holm.Test/Many")(b"many", timeout=60)])
print(*[said.decode() for said in channel.stream_stream("/holm.Test/Both")(iter([b"a", b"b", b"c"]), timeout=60)])
print(channel.stream_unary("/holm.Test/Joined")(iter([b"a", b"b"]), timeout=60).decode())
large = bytes(range(256)) * 8_000
print(channel.unary_unary("/holm.Test/One")(large, timeout=60) == large)
for method in ["Fail", "None"]:
    try:
        channel.unary_unary("/holm.Test/" + method)(b"", timeout=60)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
try:
    channel.unary_unary("/other.Test/One")(b"", timeout=60)
except grpc.RpcError as error:
    print(error.code().name)
"#;
    let place = format!("{SITE}:{}", clients.rpc_port);
    let ran =
        clients.run(&[], &format!("POST {place}/holm.Test"), &["/usr/bin/python3", "-c", program, &place]).succeeds();
    let said = "said yes\nmany many many\na b c\nab\nTrue\nNOT_FOUND there is none\nUNIMPLEMENTED Method not found!\nPERMISSION_DENIED\n";
    assert_eq!(ran.text(), said);
}

#[test]
fn a_websocket_stays_open_both_ways() {
    let clients = Clients::new();
    let program = r#"
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], max_size=None) as socket:
        for said in ["a", "b" * 100_000, b"c" * 2_000_000, ""]:
            await socket.send(said)
            print(await socket.recv() == said)
        await asyncio.wait_for(await socket.ping(), 60)
        print("pong")
asyncio.run(main())
"#;
    let place = format!("{SITE}:{}", clients.socket_port);
    let url = format!("wss://{place}/socket");
    let ran = clients.run(&[], &format!("GET {place}/socket"), &["/usr/bin/python3", "-c", program, &url]).succeeds();
    assert_eq!(ran.text(), "True\nTrue\nTrue\nTrue\npong\n");
}

/// Each event is said once the one before it was read: none waits for another anywhere.
#[test]
fn events_come_one_by_one() {
    let clients = Clients::new();
    let text = format!(
        "curl --silent --show-error --no-buffer {url}/events | while read -r line; do
    case \"$line\" in data:*) echo \"$line\"; curl --silent --request PUT --data heard {url}/heard;; esac
done",
        url = clients.url()
    );
    let ran = clients.script("GET,PUT", "/", &text).succeeds();
    assert_eq!(ran.text(), "data: 0\ndata: 1\ndata: 2\n");
}

/// Without it none of them is served, and what the sandbox brings instead is taken for nothing.
#[test]
fn who_has_no_credential_is_refused_by_each_server() {
    let clients = Clients::new();
    let (url, rule) = (clients.url(), |port: u16| format!("{SITE}:{port}/"));
    let text = format!(
        "curl --silent --output /dev/null --write-out '%{{http_code}}\\n' --header 'authorization: Bearer mine' {url}/app/package.json
curl --silent --output /dev/null --write-out '%{{http_code}}\\n' 'https://{SITE}:{}/socket?key=mine' \
  --http1.1 --header 'connection: upgrade' --header 'upgrade: websocket' --header 'sec-websocket-version: 13' \
  --header 'sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=='",
        clients.socket_port
    );
    let rules = [rule(clients.port), rule(clients.socket_port)];
    let command = ["--allow", &rules[0], "--allow", &rules[1], "--", "/bin/sh", "-euc", &text];
    assert_eq!(clients.world.run(command).succeeds().text(), "401\n401\n");
}
