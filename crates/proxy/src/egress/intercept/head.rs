//! The heads of requests and answers: which are fit to be passed on, and what of them is.
//!
//! What always holds: a request that is passed on names, wherever a host can stand, the one that its connection was made to,
//! and nothing of it is about the connection that it came over.

use holm_domain::egress::{
    name::{Host, HostName, port as port_of},
    policy::PORT,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri, Version,
    header::{
        ALT_SVC, CONNECTION, CONTENT_ENCODING, COOKIE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request, response,
    uri::{Authority, Scheme},
};

use super::{
    super::{Refusal, checks::is_off},
    HEADERS_MAX,
};

/// What is about a connection, beside what it says itself (RFC 9110, section 7.6.1).
const OF_A_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHORIZATION,
    PROXY_AUTHENTICATE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// By which some servers take a request for another than its method and its path say.
const OTHER_REQUESTS: [HeaderName; 5] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// What says that a body is in another form: itself (RFC 9110, section 8.4), on its way (RFC 9112, section 7), by difference
/// (RFC 3229), and the messages in it (gRPC, Connect).
const ENCODINGS: [HeaderName; 5] = [
    CONTENT_ENCODING,
    TRANSFER_ENCODING,
    HeaderName::from_static("im"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("connect-content-encoding"),
];

/// Refuses more fields than a head may have.
pub fn fields(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.len() > HEADERS_MAX { Err(Refusal::MalformedRequest) } else { Ok(()) }
}

/// Refuses a request that may be read in more than one way, or is for another host than `name` and `port`.
pub fn check(head: &request::Parts, name: &HostName, port: u16) -> Result<(), Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) && !is_off("method") || !head.uri.path().starts_with('/')
    {
        return Err(Refusal::Method);
    }
    if head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(Refusal::OtherHost);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let host = host.map(|host| Authority::try_from(host.as_bytes())).transpose();
    let another = another.filter(|_| !is_off("one host"));
    let (Ok(host), None) = (host, another) else { return Err(Refusal::MalformedRequest) };
    // HTTP/2 has it in its pseudo-header, which is the authority here; HTTP/1.1 has it in this field always.
    if host.is_none() && (head.version < Version::HTTP_2 || head.uri.authority().is_none()) {
        return Err(Refusal::MalformedRequest);
    }
    let mut named = host.iter().chain(head.uri.authority());
    named.try_for_each(
        |authority| if is_of(authority, name, port)? || is_off("host") { Ok(()) } else { Err(Refusal::OtherHost) },
    )
}

/// Whether an authority is that of `name` and `port`, where the scheme is HTTPS.
fn is_of(authority: &Authority, name: &HostName, port: u16) -> Result<bool, Refusal> {
    let (host, whole) = (authority.host(), authority.as_str());
    let own = match whole.strip_prefix(host) {
        Some("") => PORT,
        Some(rest) => rest.strip_prefix(':').and_then(port_of).ok_or(Refusal::MalformedRequest)?,
        // Somebody's name stands before it (RFC 9110, section 4.2.4).
        None => return Err(Refusal::MalformedRequest),
    };
    let host = Host::from_wire(host.as_bytes()).map_err(|_| Refusal::MalformedRequest)?;
    Ok(host == Host::Name(name.clone()) && own == port)
}

/// Whether nothing may follow a request over its connection: where its body ends is said by its transfer coding, and what else it
/// may have said of that is not known here any more (RFC 9112, section 6.1).
pub fn is_the_last(head: &request::Parts) -> bool {
    head.headers.contains_key(TRANSFER_ENCODING)
}

/// Whether a request asks for the connection to become one of WebSocket (RFC 6455, section 4.1).
pub fn is_websocket(head: &request::Parts) -> bool {
    let is_one = |name: HeaderName| head.headers.get_all(name).iter().count() == 1;
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && is_one(UPGRADE)
        && head.headers[UPGRADE].as_bytes().eq_ignore_ascii_case(b"websocket")
        && tokens(&head.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Leaves of a request what is for the server at `name` and `port`.
pub fn outgoing(head: &mut request::Parts, name: &HostName, port: u16) -> Result<(), Refusal> {
    let is_websocket = is_websocket(head);
    let takes_trailers = tokens(&head.headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip(&mut head.headers);
    // What follows `Expect` is answered here, trailers of requests are not passed on, and the host is said anew.
    for name in [TE, EXPECT, HOST, TRAILER].iter().chain(&OTHER_REQUESTS) {
        head.headers.remove(name);
    }
    if takes_trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(&mut head.headers);
    if is_websocket {
        upgrade(&mut head.headers);
    }
    head.version = Version::HTTP_11;
    let target = head.uri.path_and_query().map_or("/", |path| path.as_str());
    // A query may follow the host at once (RFC 9112, section 3.2.1).
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let whole = Uri::builder().scheme(Scheme::HTTPS).authority(authority(name, port)).path_and_query(target).build();
    head.uri = whole.map_err(|_| Refusal::MalformedRequest)?;
    head.extensions.clear();
    Ok(())
}

/// Cookies that came apart are one field in HTTP/1.1 (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if parts.len() < 2 {
        return;
    }
    let parts: Vec<&[u8]> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// How a host is told where the scheme is HTTPS.
fn authority(name: &HostName, port: u16) -> String {
    if port == PORT { name.to_string() } else { format!("{name}:{port}") }
}

/// Says in an answer that nothing follows it.
pub fn close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Leaves of an answer what is for the client. That the server is to be found elsewhere too is not passed on (RFC 7838): by
/// another protocol, nothing leaves the sandbox.
pub fn incoming(head: &mut response::Parts) {
    strip(&mut head.headers);
    head.headers.remove(ALT_SVC);
    head.version = Version::HTTP_11;
    head.extensions.clear();
}

/// Whether the body of an answer is in another form than it was asked for: compressed, by itself or on its way.
pub fn is_encoded(head: &response::Parts) -> bool {
    let is_plain = |token: &str| ["identity", "chunked"].iter().any(|plain| token.eq_ignore_ascii_case(plain));
    ENCODINGS.iter().any(|name| {
        let values = head.headers.get_all(name).iter();
        // What cannot be read is none of those that are known.
        values.into_iter().any(|value| !value.to_str().is_ok_and(|value| value.split(',').map(str::trim).all(is_plain)))
    })
}

/// Says that the connection becomes one of WebSocket.
pub fn upgrade(headers: &mut HeaderMap) {
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Removes what is about the connection that it came over, first of all what that says.
fn strip(headers: &mut HeaderMap) {
    if is_off("connection") {
        return;
    }
    let listed: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in listed.iter().chain(&OF_A_CONNECTION) {
        headers.remove(name);
    }
}

/// The words of a field that lists some (RFC 9110, section 5.6.1).
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}
