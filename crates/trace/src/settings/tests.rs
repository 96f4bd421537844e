//! What comes of variables, and that nothing secret is shown of them.

use std::collections::BTreeMap;

use super::*;

/// What comes of these variables.
pub(crate) fn read(variables: &[(&'static str, &str)]) -> Result<Option<Settings>, InvalidField> {
    let variables: BTreeMap<_, _> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Settings::read(None, None, Some("h1"), |name| variables.get(name).cloned())
}

fn on(more: &[(&'static str, &str)]) -> Result<Settings, InvalidField> {
    let variables = [&[(ENDPOINT, "http://c:4318")], more].concat();
    read(&variables).map(|settings| settings.expect("a collector is named"))
}

#[test]
fn nothing_is_recorded_unless_a_collector_is_named() {
    assert!(read(&[]).unwrap().is_none());
    assert!(read(&[(ENDPOINT, "")]).unwrap().is_none(), "what is empty is not set");
    assert!(read(&[("OTEL_TRACES_SAMPLER", "nonsense")]).unwrap().is_none(), "it is for other programs");
    assert!(read(&[("OTEL_TRACES_EXPORTER", "zipkin")]).unwrap().is_none());
    for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
        for endpoint in ["http://c", "c:4317"] {
            assert!(read(&[(ENDPOINT, endpoint), off]).unwrap().is_none(), "{endpoint}");
        }
    }
    for on in [("OTEL_SDK_DISABLED", "1"), ("OTEL_TRACES_EXPORTER", "otlp")] {
        assert!(read(&[(ENDPOINT, "http://c"), on]).unwrap().is_some());
    }
}

#[test]
fn the_collector_is_the_one_that_counts_most() {
    let endpoint = |flag: Option<&'static str>, file: Option<&'static str>, variables: &[(&'static str, &str)]| {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let named = |at, url: Option<&'static str>| url.map(|url| Named { at, url });
        let settings = Settings::read(named("--otlp-endpoint", flag), named("file", file), None, |name| {
            variables.get(name).map(|value| (*value).to_owned())
        });
        settings.unwrap().unwrap().endpoint.to_string()
    };
    let (all, traces) = ((ENDPOINT, "http://e:4318/"), (TRACES_ENDPOINT, "https://t/own"));
    assert_eq!(endpoint(None, Some("http://f"), &[]), "http://f/v1/traces");
    assert_eq!(endpoint(None, Some("http://f"), &[all]), "http://e:4318/v1/traces");
    assert_eq!(endpoint(None, Some("http://f"), &[all, traces]), "https://t/own");
    assert_eq!(endpoint(Some("http://g/p"), Some("http://f"), &[all, traces]), "http://g/p/v1/traces");
    // What is used is what was read, however it was written.
    for written in ["HTTPS://C:4318", " https://c:4318 ", "https://c:4318//"] {
        assert_eq!(endpoint(Some(written), None, &[]), "https://c:4318/v1/traces", "{written}");
        assert!(read(&[(ENDPOINT, written)]).unwrap().unwrap().is_encrypted(), "{written}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    for (name, value) in [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/x"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%f"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "=c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Length=0"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b,transfer-encoding=chunked"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "host=other"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "connection=close"),
        (TRACES_ENDPOINT, "collector:4317"),
        (TRACES_ENDPOINT, "grpc://c"),
        (TRACES_ENDPOINT, "http://"),
    ] {
        let refused = on(&[(name, value)]).unwrap_err();
        assert_eq!(refused.field, name, "{value}");
        assert!(!refused.problem.is_empty());
    }
    let argument = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
    assert_eq!(on(&argument).unwrap_err().field, "OTEL_TRACES_SAMPLER_ARG");
}

#[test]
fn nothing_secret_is_shown() {
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2, x-a=hunter2")];
    let settings = on(&headers).unwrap();
    assert_eq!(settings.headers["authorization"], "Bearer hunter2");
    let shown = format!("{settings:?} {:?}", settings.headers);
    assert!(shown.contains("authorization") && !shown.contains("hunter2"), "{shown}");
    for endpoint in ["https://c.example:4318/hunter2", "https://c.example:4318/a/hunter2/v1/traces"] {
        for name in [ENDPOINT, TRACES_ENDPOINT] {
            let settings = read(&[(name, endpoint)]).unwrap().unwrap();
            assert!(settings.endpoint.path().contains("hunter2"));
            assert_eq!(settings.collector(), "https://c.example:4318");
            assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
        }
    }
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0a"),
        (TRACES_ENDPOINT, "http://u:hunter2@c"),
        (TRACES_ENDPOINT, "http://c/?key=hunter2"),
        (TRACES_ENDPOINT, "htp://c/?key=hunter2"),
        (TRACES_ENDPOINT, "htp://c/hunter2"),
        (TRACES_ENDPOINT, "http:/\u{7f}/[hunter2"),
        (TRACES_ENDPOINT, "c.example/hunter2"),
    ] {
        let refused = on(&[(name, value)]).unwrap_err();
        assert_eq!(refused.field, name);
        assert!(!format!("{refused:?} {refused}").contains("hunter2"), "{refused:?}");
    }
}

#[test]
fn who_records_is_told_by_part_unless_a_name_was_given() {
    let names = |variables: &[(&'static str, &str)], part| {
        let resource = on(variables).unwrap().resource;
        resource.attributes_of(part).map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let version = format!("service.version={}", env!("CARGO_PKG_VERSION"));
    assert_eq!(names(&[], Part::Shim), ["service.name=holm-shim", &version, "host.name=h1"]);
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, deployment.environment.name=x%2Cy,host.name=other");
    assert_eq!(
        names(&[attributes], Part::Cli),
        ["service.name=a", &version, "deployment.environment.name=x,y", "host.name=other"]
    );
    assert_eq!(names(&[attributes, ("OTEL_SERVICE_NAME", "b")], Part::Cli)[0], "service.name=b");
}

#[test]
fn headers_over_a_network_that_anybody_may_read_are_seen() {
    let shows = |url: &str, headers: &str| {
        read(&[(ENDPOINT, url), ("OTEL_EXPORTER_OTLP_HEADERS", headers)]).unwrap().unwrap().shows_headers()
    };
    for url in ["http://c:4318", "http://192.0.2.1:4318", "http://[2001:db8::1]:4318", "http://localhost.example"] {
        assert!(shows(url, "a=b") && !shows(url, ""), "{url}");
    }
    for url in ["https://c:4318", "http://localhost:4318", "http://127.0.0.2:4318", "http://[::1]:4318"] {
        assert!(!shows(url, "a=b"), "{url}");
    }
}
