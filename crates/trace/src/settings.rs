//! What a tracer is told, by the variables that OpenTelemetry has for it.
//!
//! What always holds: a value that cannot be used is refused with its name and the way out, and never passed over, or
//! somebody would look for spans that were never sent; the value of a header is shown nowhere, and of a URL, whose path may be
//! a key, only where it leads.
//!
//! See <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

use std::{fmt, net::IpAddr, time::Duration};

use holm_domain::{error::InvalidField, trace::Sampler};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::Url;

use crate::Part;

/// The collector, to which `/v1/traces` is added.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// The collector of traces, as it is.
pub const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// How long one request may take where nobody says.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most attributes of a resource, and headers of a request.
const PAIRS_MAX: usize = 64;
/// What says where a request ends and to whom it goes; a value of somebody else's would break each of them.
const OF_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// What would have to be obeyed and is not.
const NOT_OBEYED: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
];

/// What a tracer is told.
#[derive(Clone)]
pub struct Settings {
    /// The URL to which requests go. Its path may be secret.
    pub(crate) endpoint: Url,
    /// What is added to each request. May be secret.
    pub(crate) headers: HeaderMap,
    /// How long one request may take.
    pub(crate) timeout: Duration,
    /// What is recorded.
    pub(crate) sampler: Sampler,
    /// Who records.
    pub(crate) resource: ResourceSettings,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        let Self { timeout, sampler, resource, .. } = self;
        f.debug_struct("Settings")
            .field("collector", &self.collector())
            .field("headers", &names)
            .field("timeout", timeout)
            .field("sampler", sampler)
            .field("resource", resource)
            .finish()
    }
}

/// Who records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResourceSettings {
    /// The name of the service, whatever the part; otherwise each has its own.
    service: Option<String>,
    /// The rest.
    attributes: Vec<(String, String)>,
}

impl ResourceSettings {
    /// The attributes of one part.
    pub(crate) fn attributes_of(&self, part: Part) -> impl Iterator<Item = (&str, &str)> {
        let of_part = match part {
            Part::Cli => "holm-cli",
            Part::Server => "holm-server",
            Part::Agent => "holm-agent",
            Part::Shim => "holm-shim",
            Part::Guest => "holm-guest",
        };
        let own = [
            ("service.name", self.service.as_deref().unwrap_or(of_part)),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        own.into_iter().chain(self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }
}

/// A collector that was named elsewhere than in the environment.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Where it was named.
    pub at: &'a str,
    /// The URL, to which `/v1/traces` is added.
    pub url: &'a str,
}

impl Settings {
    /// Reads what `variable` has, which is nothing for a variable that is not set. `flag` counts more than the environment,
    /// and that more than `file`. Nothing if no collector is named, or nothing is to be recorded.
    pub fn read(
        flag: Option<Named<'_>>,
        file: Option<Named<'_>>,
        host: Option<&str>,
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Self>, InvalidField> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        // Who switches it off is not told what else is wrong.
        if is_switched_off(&variable) {
            return Ok(None);
        }
        let Some(endpoint) = endpoint(flag, file, &variable)? else { return Ok(None) };
        check_protocol(&variable)?;
        let timeout = either(&variable, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
        let timeout = timeout.map(|(name, value)| read_timeout(name, &value)).transpose()?.unwrap_or(TIMEOUT);
        let sampler = match variable("OTEL_TRACES_SAMPLER") {
            Some(name) => Sampler::read(&name, variable("OTEL_TRACES_SAMPLER_ARG").as_deref())?,
            None => Sampler::default(),
        };
        let mut headers = HeaderMap::new();
        for name in ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"] {
            if let Some(value) = variable(name) {
                add_headers(&mut headers, name, &value)?;
            }
        }
        let resource = resource(&variable, host)?;
        Ok(Some(Self { endpoint, headers, timeout, sampler, resource }))
    }

    /// Where the collector is, for people: scheme, host and port.
    pub fn collector(&self) -> String {
        self.endpoint.origin().ascii_serialization()
    }

    /// Whether what is sent is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.endpoint.scheme() == "https"
    }

    /// Whether headers, which may be secret, go over a network that anybody may read.
    pub fn shows_headers(&self) -> bool {
        let host = self.endpoint.host_str().filter(|_| !self.is_encrypted()).map(|host| host.trim_matches(['[', ']']));
        let is_elsewhere = |host: &str| host != "localhost" && !host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        !self.headers.is_empty() && host.is_some_and(is_elsewhere)
    }
}

type Variable<'a> = &'a dyn Fn(&'static str) -> Option<String>;

fn either(variable: Variable<'_>, first: &'static str, other: &'static str) -> Option<(&'static str, String)> {
    [first, other].into_iter().find_map(|name| variable(name).map(|value| (name, value)))
}

fn endpoint(
    flag: Option<Named<'_>>,
    file: Option<Named<'_>>,
    variable: Variable<'_>,
) -> Result<Option<Url>, InvalidField> {
    let of_all = |named: Named<'_>| {
        let mut url = read_url(named.at, named.url)?;
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Ok(Some(url))
    };
    if let Some(flag) = flag {
        return of_all(flag);
    }
    if let Some(url) = variable(TRACES_ENDPOINT) {
        return read_url(TRACES_ENDPOINT, &url).map(Some);
    }
    if let Some(url) = variable(ENDPOINT) {
        return of_all(Named { at: ENDPOINT, url: &url });
    }
    file.map_or(Ok(None), of_all)
}

/// What is used is what was read here, not the text. That is not quoted: any part of it may be a key.
fn read_url(at: &str, url: &str) -> Result<Url, InvalidField> {
    let read = Url::parse(url).ok().filter(|read| matches!(read.scheme(), "http" | "https") && read.has_host());
    let refused = |problem: &str| InvalidField::new(at, "(not shown)", problem);
    let read = read.ok_or_else(|| refused("give http://HOST:4318 or https://HOST:4318"))?;
    let is_plain = read.username().is_empty() && read.password().is_none();
    if !is_plain || read.query().is_some() || read.fragment().is_some() {
        return Err(refused(
            "leave name, password and query out: what a collector wants to know goes into OTEL_EXPORTER_OTLP_HEADERS",
        ));
    }
    Ok(read)
}

fn is_switched_off(variable: Variable<'_>) -> bool {
    // As the specification has it, whatever is not `true` is false.
    variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none")
}

fn check_protocol(variable: Variable<'_>) -> Result<(), InvalidField> {
    if let Some(other) = variable("OTEL_TRACES_EXPORTER").filter(|value| value != "otlp") {
        return Err(InvalidField::new("OTEL_TRACES_EXPORTER", other, "give otlp or none"));
    }
    let protocol = either(variable, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
    if let Some((name, other)) = protocol.filter(|(_, value)| value != "http/protobuf") {
        return Err(InvalidField::new(name, other, "give http/protobuf, mostly on port 4318, or unset it"));
    }
    let compression = either(variable, "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION");
    if let Some((name, other)) = compression.filter(|(_, value)| value != "none") {
        return Err(InvalidField::new(name, other, "give none, or unset it: requests are not compressed"));
    }
    match NOT_OBEYED.into_iter().find(|name| variable(name).is_some()) {
        Some(name) => {
            let problem = "unset it: a certificate is trusted that the system trusts, and none is shown; for more, have a \
                           collector on this machine pass spans on";
            Err(InvalidField::new(name, "(not shown)", problem))
        }
        None => Ok(()),
    }
}

fn read_timeout(name: &str, value: &str) -> Result<Duration, InvalidField> {
    let millis = value.trim().parse::<u64>().ok().filter(|millis| (1..=60_000).contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| InvalidField::new(name, value, "give 1 to 60000 milliseconds"))
}

fn add_headers(headers: &mut HeaderMap, at: &str, list: &str) -> Result<(), InvalidField> {
    let refused = || InvalidField::new(at, "(not shown)", "give NAME=VALUE,…, with %XX for what cannot stand there");
    for (name, value) in pairs(list).ok_or_else(refused)? {
        let name = HeaderName::try_from(name).map_err(|_| refused())?;
        if OF_CONNECTION.contains(&name) {
            return Err(InvalidField::new(at, name, "leave this header out: it belongs to the connection"));
        }
        let mut value = HeaderValue::try_from(value).map_err(|_| refused())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(())
}

fn resource(variable: Variable<'_>, host: Option<&str>) -> Result<ResourceSettings, InvalidField> {
    const AT: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let list = variable(AT).unwrap_or_default();
    let refused = || InvalidField::new(AT, &list, "give NAME=VALUE,…, with %XX for what cannot stand there");
    let mut attributes = pairs(&list).ok_or_else(refused)?;
    let mut service = variable("OTEL_SERVICE_NAME");
    attributes.retain(|(name, value)| {
        if name == "service.name" {
            service.get_or_insert_with(|| value.clone());
        }
        name != "service.name" && name != "service.version"
    });
    let has_host = attributes.iter().any(|(name, _)| name == "host.name");
    attributes.extend(host.filter(|_| !has_host).map(|host| ("host.name".to_owned(), host.to_owned())));
    Ok(ResourceSettings { service, attributes })
}

/// The pairs of a list in the form of W3C Baggage without properties; nothing if it is none.
fn pairs(list: &str) -> Option<Vec<(String, String)>> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let (name, value) = (decoded(name.trim())?, decoded(value.trim())?);
        (!name.is_empty()).then_some((name, value))
    };
    let parts: Vec<&str> = list.split(',').filter(|part| !part.trim().is_empty()).collect();
    if parts.len() > PAIRS_MAX {
        return None;
    }
    parts.into_iter().map(pair).collect()
}

/// A text with `%XX` for some of its bytes.
fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, others @ ..] = rest {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, others) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = others;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
pub(crate) mod tests;
