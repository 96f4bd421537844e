//! How people write sizes, durations and processors: read and shown.
//!
//! What always holds: a text that is not understood is refused with a sentence that says what would be; nothing is
//! rounded silently to something that was not meant; no value overflows.

use std::time::Duration;

use holm_domain::UnixMicros;

const KIB: u64 = 1024;

/// Reads `512m`, `1.5g`, `4096`: bytes, or with a suffix of powers of 1,024 as docker has them.
pub fn bytes(text: &str) -> Result<u64, String> {
    let way_out = "give a size such as `512m`, `1.5g` or a number of bytes";
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => KIB.pow(2),
        "g" | "gb" | "gib" => KIB.pow(3),
        "t" | "tb" | "tib" => KIB.pow(4),
        _ => return Err(way_out.to_owned()),
    };
    let (numerator, denominator) = decimal(number, 9).ok_or(way_out)?;
    let bytes = u128::from(numerator) * u128::from(unit) / u128::from(denominator);
    u64::try_from(bytes).map_err(|_| format!("{way_out}; this is more than there can be"))
}

/// Reads `1.5` processors as thousandths.
pub fn milli_cpus(text: &str) -> Result<u32, String> {
    let way_out = "give processors such as `2`, `1.5` or `0.25`, with at most three decimals";
    let (numerator, denominator) = decimal(text, 3).ok_or(way_out)?;
    let milli = u128::from(numerator) * 1000 / u128::from(denominator);
    u32::try_from(milli).map_err(|_| format!("{way_out}; this is more than there can be"))
}

/// Reads `30s`, `500ms`, `1h30m`, `2d`; a bare number is seconds, as timeout(1) has it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let way_out = "give a duration such as `30s`, `500ms`, `1h30m` or `2d`";
    if let Some((numerator, denominator)) = decimal(text, 3) {
        let millis = u128::from(numerator) * 1000 / u128::from(denominator);
        return u64::try_from(millis).map(Duration::from_millis).map_err(|_| way_out.to_owned());
    }
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or(way_out)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(way_out.to_owned()),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        millis = part.and_then(|part| millis.checked_add(part)).ok_or(way_out)?;
        rest = tail;
    }
    if text.is_empty() { Err(way_out.to_owned()) } else { Ok(Duration::from_millis(millis)) }
}

/// Reads an instant: `2026-11-26T14:00:00Z`, seconds since the Unix epoch, or a duration before now.
pub fn time(text: &str) -> Result<UnixMicros, String> {
    time_at(text, UnixMicros(jiff::Timestamp::now().as_microsecond()))
}

fn time_at(text: &str, now: UnixMicros) -> Result<UnixMicros, String> {
    let way_out =
        "give a time such as `2026-11-26T14:00:00Z`, seconds since 1970, or a duration before now such as `10m`";
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Ok(UnixMicros(timestamp.as_microsecond()));
    }
    // A bare number is an instant, as docker has it; with a unit it is a duration.
    if let Some((numerator, denominator)) = decimal(text, 6) {
        let micros = u128::from(numerator) * 1_000_000 / u128::from(denominator);
        return i64::try_from(micros).map(UnixMicros).map_err(|_| way_out.to_owned());
    }
    let before = duration(text).map_err(|_| way_out.to_owned())?;
    let micros = i64::try_from(before.as_micros()).map_err(|_| way_out.to_owned())?;
    Ok(UnixMicros(now.0.saturating_sub(micros)))
}

/// A decimal number as a fraction; nothing if it has more decimals than `decimals`, a sign, or does not fit.
fn decimal(text: &str, decimals: usize) -> Option<(u64, u64)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !all_digits(whole) || !all_digits(part) || part.len() > decimals {
        return None;
    }
    let denominator = 10u64.pow(u32::try_from(part.len()).ok()?);
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    Some((whole.checked_mul(denominator)?.checked_add(part)?, denominator))
}

/// Bytes for people: the largest unit in which the number is at least one.
pub fn show_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut unit, mut scale) = (0, 1u64);
    while unit + 1 < units.len() && bytes / scale >= KIB {
        unit += 1;
        scale *= KIB;
    }
    if bytes.is_multiple_of(scale) {
        return format!("{} {}", bytes / scale, units[unit]);
    }
    format!("{:.1} {}", bytes as f64 / scale as f64, units[unit])
}

/// Processors for people.
pub fn show_cpus(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Thousandths of a processor for people, as a share of one.
pub fn show_percent(milli: u64) -> String {
    format!("{}.{} %", milli / 10, milli % 10)
}

/// A duration for people, in at most two units.
pub fn show_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// An age for people, in one unit as docker has it: finer than that nobody reads a list.
pub fn show_age(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (minutes, hours, days) {
        (0, ..) => format!("{seconds} s"),
        (_, 0, _) => format!("{minutes} min"),
        (_, 1..48, _) => format!("{hours} h"),
        (.., 2..14) => format!("{days} days"),
        (.., 14..60) => format!("{} weeks", days / 7),
        (.., 60..730) => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("1b"), Ok(1));
        for bad in ["", "m", "-1", "1x", "1 m", "1..5g", "99999999999t", "1e9", ".", "0x10", "1,5g"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(milli_cpus("1.5"), Ok(1500));
        assert_eq!(milli_cpus("2"), Ok(2000));
        assert_eq!(milli_cpus(".25"), Ok(250));
        for bad in ["", "1.2345", "-1", "two", "1m", "99999999999", "inf", "NaN"] {
            assert!(milli_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "s", "5x", "-5s", "5 s", "99999999999999999999d", "1.5h", "1h30"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        let now = UnixMicros(1_000_000_000_000);
        let read = |text| time_at(text, now).map(|at| at.0);
        assert_eq!(read("1970-01-01T00:00:01.5Z"), Ok(1_500_000));
        assert_eq!(read("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(read("12.25"), Ok(12_250_000));
        assert_eq!(read("10m"), Ok(now.0 - 600_000_000));
        assert_eq!(read("500ms"), Ok(now.0 - 500_000));
        for bad in ["", "yesterday", "-10m", "2026-11-26", "14:00", "99999999999999999999"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_for_people() {
        assert_eq!(show_bytes(512 << 20), "512 MiB");
        assert_eq!(show_bytes(1500), "1.5 KiB");
        assert_eq!(show_bytes(7), "7 B");
        assert_eq!(show_cpus(1500), "1.5");
        assert_eq!(show_cpus(2000), "2");
        assert_eq!(show_duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(show_duration(Duration::from_secs(90)), "1 min 30 s");
        const DAY: u64 = 86_400;
        for (seconds, age) in [
            (0, "0 s"),
            (59, "59 s"),
            (90, "1 min"),
            (3_599, "59 min"),
            (3_600, "1 h"),
            (47 * 3_600, "47 h"),
            (2 * DAY, "2 days"),
            (20 * DAY, "2 weeks"),
            (61 * DAY, "2 months"),
            (800 * DAY, "2 years"),
        ] {
            assert_eq!(show_age(Duration::from_secs(seconds)), age);
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,30}|[0-9.]{0,30}[a-z]{0,3}") {
            let _any: (Result<u64, String>, Result<u32, String>, Result<Duration, String>) =
                (bytes(&text), milli_cpus(&text), duration(&text));
        }

        #[test]
        fn whole_sizes_are_exact(number in 0u64..1 << 30) {
            prop_assert_eq!(bytes(&format!("{number}")), Ok(number));
            prop_assert_eq!(bytes(&format!("{number}m")), Ok(number << 20));
            prop_assert_eq!(duration(&format!("{number}ms")), Ok(Duration::from_millis(number)));
        }
    }
}
