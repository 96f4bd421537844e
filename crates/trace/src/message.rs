//! Spans as OTLP has them (<https://opentelemetry.io/docs/specs/otlp/>).

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Status, span::SpanKind, status::StatusCode},
};
use prost::Message as _;

use crate::{Kind, Part, Span, settings::ResourceSettings};

/// One request for all of `spans`: those of each part under a resource of its own.
pub(crate) fn request(resource: &ResourceSettings, spans: &[Span]) -> Bytes {
    let resource_spans = Part::ALL.into_iter().filter_map(|part| of_part(resource, part, spans)).collect();
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn of_part(resource: &ResourceSettings, part: Part, spans: &[Span]) -> Option<ResourceSpans> {
    let spans: Vec<_> = spans.iter().filter(|span| span.part == part).map(encoded).collect();
    if spans.is_empty() {
        return None;
    }
    let attributes = resource.attributes_of(part).map(|(name, value)| text(name, value)).collect();
    let scope = InstrumentationScope {
        name: format!("holm.{}", part.as_str()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    Some(ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    })
}

fn text(name: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}

fn encoded(span: &Span) -> opentelemetry_proto::tonic::trace::v1::Span {
    let kind = match span.kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
    };
    let status = span.is_failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() });
    let nanos = |at: holm_domain::UnixMicros| u64::try_from(at.0).unwrap_or(0).saturating_mul(1_000);
    opentelemetry_proto::tonic::trace::v1::Span {
        trace_id: span.trace.to_bytes().to_vec(),
        span_id: span.id.to_bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.to_bytes().to_vec()).unwrap_or_default(),
        // Sampled, as everything that is sent.
        flags: 1,
        name: span.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.during.start()),
        end_time_unix_nano: nanos(span.during.end()),
        attributes: span.attributes.iter().map(|(name, value)| text(name, value)).collect(),
        status,
        ..opentelemetry_proto::tonic::trace::v1::Span::default()
    }
}
