//! A site on this machine, over TLS, that keeps what it is asked; and an installation whose runs may reach it.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use holm_e2e::{
    World,
    names::{Answers, NameServer},
    ran::Ran,
};
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{ALT_SVC, AUTHORIZATION, CONTENT_ENCODING, HOST, LOCATION, SET_COOKIE},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;

/// Much to say.
static BIG: OnceLock<Bytes> = OnceLock::new();

/// The name of the site, and one that leads to the same address and that no certificate of it has.
pub const SITE: &str = "site.example";
pub const EVIL: &str = "evil.example";

/// A site on this machine whose certificate leads to an authority that nothing trusts.
pub struct Site {
    pub port: u16,
    /// The file of the authority.
    pub authority: PathBuf,
    kept: Kept,
}

impl Site {
    /// One that says `site` to all requests, and keeps its authority in `dir`.
    fn start(dir: &Path) -> Self {
        let certified = certified();
        let config = speaks(&certified);
        let authority = dir.join("authority.pem");
        fs::write(&authority, certified.authority).expect("a file");
        let kept = Kept::default();
        let keeps = kept.clone();
        let (sender, port) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                sender.send(listener.local_addr().expect("its address").port()).expect("somebody waits for it");
                let acceptor = TlsAcceptor::from(Arc::new(config));
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(acceptor.clone(), stream, keeps.clone()));
                }
            });
        });
        Self { port: port.recv().expect("a port"), authority, kept }
    }

    pub fn rule(&self, methods: &str, path: &str) -> String {
        format!("{methods} {SITE}:{}{path}", self.port)
    }

    /// What it was asked since that was asked last.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.kept.asked))
    }

    /// All that it was sent within TLS, in small letters, whether it was a request or not.
    pub fn heard(&self) -> String {
        lock(&self.kept.heard).clone()
    }

    /// All that came by its wire, in small letters, whether it was TLS or not.
    pub fn wire(&self) -> String {
        lock(&self.kept.wire).clone()
    }
}

/// What a site keeps.
#[derive(Clone, Default)]
struct Kept {
    asked: Arc<Mutex<Vec<String>>>,
    heard: Arc<Mutex<String>>,
    wire: Arc<Mutex<String>>,
}

fn keep(kept: &Mutex<String>, bytes: &[u8]) {
    lock(kept).push_str(&String::from_utf8_lossy(bytes).to_lowercase());
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An authority, and a certificate of the site that it signed, with its key: all as PEM.
pub struct Certified {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// A certificate of the site's by an authority that nothing trusts.
pub fn certified() -> Certified {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([SITE.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, SITE);
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Certified { authority: issuer.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
}

/// How TLS is spoken with it.
fn speaks(certified: &Certified) -> ServerConfig {
    let certificate = CertificateDer::from_pem_slice(certified.certificate.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).expect("a key");
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    builder.with_single_cert(vec![certificate], key).expect("a certificate")
}

async fn serve(acceptor: TlsAcceptor, stream: tokio::net::TcpStream, kept: Kept) {
    let wire = kept.wire.clone();
    let stream = InspectReader::new(stream, move |bytes| keep(&wire, bytes));
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let heard = kept.heard.clone();
    let stream = InspectReader::new(stream, move |bytes| keep(&heard, bytes));
    let say = |request: Request<Incoming>| say(request, kept.clone());
    let _ends = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(say)).await;
}

/// Forms in which somebody may tell a secret, each with its name.
pub fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let each = |form: fn(u8) -> String| secret.bytes().map(form).collect::<String>();
    let behind = |before: &str| STANDARD.encode(format!("{before}{secret}"));
    vec![
        ("plain", secret.to_owned()),
        ("hex", each(|byte| format!("{byte:02x}"))),
        ("HEX", each(|byte| format!("{byte:02X}"))),
        ("percent", each(|byte| format!("%{byte:02X}"))),
        ("json", each(|byte| format!("\\u{byte:04x}"))),
        // Of the digits at the ends some belong to what stands beside.
        ("base64", behind("")[..secret.len() * 8 / 6].to_owned()),
        ("base64-1", behind("x")[2..(secret.len() + 1) * 8 / 6].to_owned()),
        ("base64-2", behind("xx")[3..(secret.len() + 2) * 8 / 6].to_owned()),
    ]
}

/// Says `site`; `/big` says much, `/hang` nothing; `/elsewhere` and `/inside` say that it is there; `/reflect` tells what it was
/// brought, in its head and in all forms, and `/compressed` as if it were compressed.
async fn say(request: Request<Incoming>, kept: Kept) -> Result<Response<Full<Bytes>>, Infallible> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let asked = format!("{} {} {}", request.method(), request.uri(), host.split(':').next().unwrap_or_default());
    let elsewhere = format!("https://{}/evil", host.replace(SITE, EVIL));
    let path = request.uri().path().to_owned();
    let brought = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let brought = brought.rsplit(' ').next().unwrap_or_default().to_owned();
    if request.into_body().collect().await.is_err() {
        // Half of a request is none.
        return Ok(Response::new(Full::default()));
    }
    lock(&kept.asked).push(asked);
    let mut answer = Response::new(Full::new(Bytes::from("site\n")));
    // It is to be found by another protocol too.
    answer.headers_mut().insert(ALT_SVC, HeaderValue::from_static("h3=\":443\""));
    match path.as_str() {
        "/reflect" | "/compressed" => {
            let told: Vec<String> =
                forms(&brought).into_iter().map(|(name, form)| format!("{name} <{form}>")).collect();
            *answer.body_mut() = Full::new(Bytes::from(told.join("\n")));
            let said = |text: String| HeaderValue::try_from(text).expect("a value");
            answer.headers_mut().insert(SET_COOKIE, said(format!("token={brought}; Path=/")));
            answer.headers_mut().insert(LOCATION, said(format!("https://{EVIL}/?token={brought}")));
            if path == "/compressed" {
                answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        "/hang" => std::future::pending().await,
        "/big" => *answer.body_mut() = Full::new(BIG.get_or_init(|| vec![0; 16 << 20].into()).clone()),
        "/elsewhere" => {
            *answer.status_mut() = StatusCode::FOUND;
            answer.headers_mut().insert(LOCATION, elsewhere.try_into().expect("a place"));
        }
        "/inside" => {
            *answer.status_mut() = StatusCode::FOUND;
            answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/evil"));
        }
        _ => {}
    }
    Ok(answer)
}

pub fn names() -> NameServer {
    let here = vec![vec!["127.0.0.1".parse().expect("an address")]];
    NameServer::start([(SITE, here.clone()), (EVIL, here)].into_iter().collect::<Answers>())
}

/// An installation whose host reaches the site, and trusts it.
pub fn world(names: &NameServer) -> (World, Site) {
    world_that_says(names, "info")
}

/// The same, whose log has what passes a filter.
pub fn world_that_says(names: &NameServer, filter: &str) -> (World, Site) {
    let mut world = World::new();
    world.set("HOLM_LOG", filter);
    let site = Site::start(world.dir());
    world.start_up_with(&reaching(names, &site).each_ref().map(String::as_str));
    (world, site)
}

/// The same, where the server and the agent `host` are processes of their own.
pub fn apart(names: &NameServer) -> (World, Site) {
    let mut world = World::new();
    let site = Site::start(world.dir());
    world.start_server();
    world.start_agent_with("host", &reaching(names, &site).each_ref().map(String::as_str));
    (world, site)
}

/// By what a host reaches the site, and trusts it.
pub fn reaching(names: &NameServer, site: &Site) -> [String; 6] {
    let trust = site.authority.display().to_string();
    ["--host-name-server", &names.address(), "--host-reach", "127.0.0.1", "--host-trust", &trust].map(str::to_owned)
}

/// What a script says that may reach what a rule allows.
pub fn script(world: &World, rule: &str, text: &str) -> Ran {
    world.run(["--allow", rule, "--", "/bin/sh", "-c", text])
}
