//! What is read of a `traceparent`, which traces are recorded, and what lies within what.

use super::*;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn what_the_specification_has_is_read() {
    let context: TraceContext = GOOD.parse().unwrap();
    assert_eq!(context.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(context.span.to_string(), "b7ad6b7169203331");
    assert!(context.is_sampled);
    assert_eq!(context.to_string(), GOOD);
    assert_eq!(context.trace.to_bytes()[..2], [0x0a, 0xf7]);
    assert_eq!(context.span.to_bytes()[..2], [0xb7, 0xad]);
    for (flags, is_sampled, written) in
        [("00", false, "00"), ("03", true, "01"), ("fe", false, "00"), ("ff", true, "01")]
    {
        let text = format!("{}{flags}", &GOOD[..53]);
        let context: TraceContext = text.parse().unwrap();
        assert_eq!((context.is_sampled, context.to_string()), (is_sampled, format!("{}{written}", &GOOD[..53])));
    }
}

// The cases of the test suite of W3C Trace Context that concern one header.
#[test]
fn what_it_forbids_is_as_if_it_were_not_there() {
    let (trace, span) = ("12345678901234567890123456789012", "1234567890123456");
    let zeros = "0".repeat(32);
    for bad in [
        String::new(),
        "foo".to_owned(),
        format!("00-{trace}-{span}-01."),
        format!("00-{trace}-{span}-01-what-the-future-will-be-like"),
        format!("ff-{trace}-{span}-01"),
        format!(".0-{trace}-{span}-01"),
        format!("0.-{trace}-{span}-01"),
        format!("000-{trace}-{span}-01"),
        format!("0-{trace}-{span}-01"),
        format!("00-{zeros}-{span}-01"),
        format!("00-.{}-{span}-01", &trace[1..]),
        format!("00-{}.-{span}-01", &trace[1..]),
        format!("00-{}-{span}-01", &trace[1..]),
        format!("00-{trace}0-{span}-01"),
        format!("00-{trace}-{}-01", &zeros[..16]),
        format!("00-{trace}-.{}-01", &span[1..]),
        format!("00-{trace}-{}-01", &span[1..]),
        format!("00-{trace}-{span}0-01"),
        format!("00-{trace}-{span}-.0"),
        format!("00-{trace}-{span}-0."),
        format!("00-{trace}-{span}-001"),
        format!("00-{trace}-{span}-1"),
        format!("00-{trace}-{span}"),
        format!("00-{trace}-{span}-"),
        format!(" 00-{trace}-{span}-01"),
        format!("00-{trace}-{span}-01 "),
        format!("00_{trace}_{span}_01"),
        format!("00--{trace}-{span}-1"),
        GOOD.to_uppercase(),
        GOOD.replace('a', "A"),
        GOOD.replace('a', "+"),
        format!("cc-{trace}-{span}-01.what"),
        format!("cc-{trace}-{span}-01-{}", "x".repeat(TRACEPARENT_BYTES_MAX)),
        format!("00-{trace}-{span}-\u{fc}"),
        format!("00-{}\u{fc}-{span}-01", &trace[2..]),
    ] {
        assert_eq!(bad.parse::<TraceContext>(), Err(NotATrace), "{bad}");
    }
}

#[test]
fn of_a_version_to_come_the_parts_of_today_are_read() {
    for later in [GOOD.replacen("00", "cc", 1), GOOD.replacen("00", "cc", 1) + "-what-the-future-will-be-like"] {
        assert_eq!(later.parse::<TraceContext>().unwrap().to_string(), GOOD, "and passed on as that of today");
    }
}

#[test]
fn a_trace_is_kept_as_text() {
    let context: TraceContext = GOOD.parse().unwrap();
    let own = Some(OwnSpan { parent: Some("00f067aa0ba902b7".parse().unwrap()) });
    for trace in [
        RunTrace { context, own, waits_since: UnixMicros(7) },
        RunTrace { context, own: None, waits_since: UnixMicros(7) },
    ] {
        let text = serde_json::to_string(&trace).unwrap();
        assert!(text.contains(GOOD) && text.len() < 160, "{text}");
        assert_eq!(serde_json::from_str::<RunTrace>(&text).unwrap(), trace);
    }
    assert!(serde_json::from_str::<TraceContext>("\"00\"").is_err());
}

#[test]
fn a_trace_that_cannot_be_read_costs_no_run() {
    use uuid::Uuid;

    use crate::{
        OrgId, ProjectId, RunId, TokenId,
        limits::LeaseConfig,
        run::{Admission, Run, RunSpec, admit},
    };

    let nil = Uuid::nil();
    let admission = Admission {
        id: RunId::from_uuid(nil),
        org: OrgId::from_uuid(nil),
        project: ProjectId::from_uuid(nil),
        created_by: TokenId::from_uuid(nil),
    };
    let run = admit(admission, RunSpec::new(["true"]), UnixMicros(1), &LeaseConfig::default()).run;
    let trace = RunTrace { context: GOOD.parse().unwrap(), own: None, waits_since: UnixMicros(1) };
    let mut row = serde_json::to_value(&run).unwrap();
    for (said, read) in [
        (serde_json::to_value(trace).unwrap(), Some(trace)),
        (serde_json::Value::Null, None),
        (serde_json::json!(GOOD), None),
        (serde_json::json!({ "context": "00-nonsense", "waits_since": 1 }), None),
        (serde_json::json!({ "context": GOOD }), None),
        (serde_json::json!([1, { "a": 2.5 }]), None),
    ] {
        row["trace"] = said;
        // As text too, which is what a row is.
        let of_text: Run = serde_json::from_str(&row.to_string()).unwrap();
        let of_value: Run = serde_json::from_value(row.clone()).unwrap();
        assert_eq!((of_text.trace, of_value.trace), (read, read), "{row}");
        assert_eq!(of_text, Run { trace: read, ..run.clone() });
    }
}

fn trace(low: u64) -> TraceId {
    TraceId::new(NonZeroU128::new((1 << 64) | u128::from(low)).unwrap())
}

#[test]
fn samplers_do_as_they_are_named() {
    let of = |name: &str, argument| Sampler::read(name, argument).unwrap();
    let lowest_and_highest =
        |sampler: Sampler, parent| (sampler.takes(trace(0), parent), sampler.takes(trace(u64::MAX), parent));
    for (name, argument, of_root) in [
        ("always_on", None, (true, true)),
        ("always_off", Some("1"), (false, false)),
        ("traceidratio", None, (true, true)),
        ("traceidratio", Some("0"), (false, false)),
        ("traceidratio", Some("0.5"), (true, false)),
        ("traceidratio", Some("1.0"), (true, true)),
    ] {
        assert_eq!(lowest_and_highest(of(name, argument), None), of_root, "{name} {argument:?}");
        assert_eq!(lowest_and_highest(of(name, argument), Some(true)), of_root, "{name} {argument:?}");
        let based = format!("parentbased_{name}");
        let based = of(&based, argument);
        assert_eq!(lowest_and_highest(based, None), of_root, "{name} {argument:?}");
        assert_eq!(lowest_and_highest(based, Some(true)), (true, true));
        assert_eq!(lowest_and_highest(based, Some(false)), (false, false));
    }
    assert_eq!(Sampler::default(), of("parentbased_always_on", None));
}

#[test]
fn samplers_that_are_not_known_are_named() {
    for name in ["", "parentbased_", "jaeger_remote", "ALWAYS_ON", "parentbased_xray"] {
        assert_eq!(Sampler::read(name, None).unwrap_err().field, "OTEL_TRACES_SAMPLER");
    }
    for argument in ["", "-0.1", "1.1", "NaN", "inf", "half"] {
        let refused = Sampler::read("parentbased_traceidratio", Some(argument)).unwrap_err();
        assert_eq!((refused.field.as_str(), refused.value.as_str()), ("OTEL_TRACES_SAMPLER_ARG", argument));
    }
}

proptest::proptest! {
    #[test]
    fn what_is_within_another_time_lies_in_it(times in proptest::array::uniform4(proptest::prelude::any::<i64>())) {
        let [a, b, c, d] = times.map(UnixMicros);
        let (outer, told) = (Interval::new(a, b), Interval::new(c, d));
        let held = told.within(outer);
        proptest::prop_assert!(outer.start() <= held.start() && held.start() <= held.end() && held.end() <= outer.end());
        proptest::prop_assert_eq!(held.within(outer), held);
        if a <= c && d <= b && c <= d {
            proptest::prop_assert_eq!(held, told);
        }
    }

    #[test]
    fn no_text_is_read_that_is_not_written_again(text in "[0-9a-f-]{50,60}") {
        if let Ok(context) = text.parse::<TraceContext>() {
            proptest::prop_assert_eq!(context.to_string().parse::<TraceContext>(), Ok(context));
        }
    }
}

#[test]
fn since_when_a_run_waits_is_told_anew_whenever_it_does() {
    use std::time::Duration;

    use uuid::Uuid;

    use crate::{
        AgentId, InstanceId, OrgId, ProjectId, RunId, TokenId,
        lease::{Claimant, grant},
        limits::LeaseConfig,
        run::{Admission, RunSpec, admit},
    };

    let (nil, config) = (Uuid::nil(), LeaseConfig::default());
    let admission = Admission {
        id: RunId::from_uuid(nil),
        org: OrgId::from_uuid(nil),
        project: ProjectId::from_uuid(nil),
        created_by: TokenId::from_uuid(nil),
    };
    let mut run = admit(admission, RunSpec::new(["true"]), UnixMicros(1), &config).run;
    assert_eq!(run.trace, None);
    let trace = RunTrace { context: GOOD.parse().unwrap(), own: None, waits_since: UnixMicros(1) };
    run.trace = Some(trace);
    let by = Claimant { agent: AgentId::from_uuid(nil), instance: InstanceId::from_uuid(nil) };
    let claimed = grant::claim(&run, by, UnixMicros(2), &config).unwrap().run;
    assert_eq!(claimed.trace, Some(trace));
    let late = UnixMicros(2).plus(config.ttl + config.margin + Duration::from_secs(1));
    let again = grant::expire(&claimed, late, &config).unwrap().run;
    assert_eq!(again.trace, Some(RunTrace { waits_since: late, ..trace }));
}
