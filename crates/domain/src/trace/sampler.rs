//! What of all traces is recorded: the samplers that the specification of OpenTelemetry names for `OTEL_TRACES_SAMPLER`.

use super::TraceId;
use crate::error::InvalidField;

/// The samplers, by their names.
const NAMES: &str = "give always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or \
                     parentbased_traceidratio";

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Whether a caller that named a trace decides for it.
    is_parent_based: bool,
    /// Those traces whose number is below this, by its lowest 63 bits; 2^63 are all.
    below: u64,
}

const ALL: u64 = 1 << 63;

impl Default for Sampler {
    /// Everything, unless the caller decides otherwise.
    fn default() -> Self {
        Self { is_parent_based: true, below: ALL }
    }
}

impl Sampler {
    /// Reads the name of a sampler and its argument, which only the ratios have (0 to 1; 1 where it is left out).
    pub fn read(name: &str, argument: Option<&str>) -> Result<Self, InvalidField> {
        let (is_parent_based, rule) = match name.strip_prefix("parentbased_") {
            Some(rule) => (true, rule),
            None => (false, name),
        };
        let below = match rule {
            "always_on" => ALL,
            "always_off" => 0,
            "traceidratio" => ratio(argument.unwrap_or("1"))?,
            _ => return Err(InvalidField::new("OTEL_TRACES_SAMPLER", name, NAMES)),
        };
        Ok(Self { is_parent_based, below })
    }

    /// Whether a trace is recorded, of which the caller has said whether it records it, if there is a caller.
    pub fn takes(self, trace: TraceId, parent: Option<bool>) -> bool {
        match parent.filter(|_| self.is_parent_based) {
            Some(is_sampled) => is_sampled,
            None => (trace.0.get() as u64) >> 1 < self.below,
        }
    }
}

fn ratio(text: &str) -> Result<u64, InvalidField> {
    let ratio = text.trim().parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    let refused = || InvalidField::new("OTEL_TRACES_SAMPLER_ARG", text, "give a number from 0 to 1");
    // Up to 2^63, which both have.
    ratio.map(|ratio| (ratio * ALL as f64) as u64).ok_or_else(refused)
}
