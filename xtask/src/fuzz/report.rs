//! What libFuzzer prints, read.

use std::fmt;

/// What became of one run of a target.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Inputs that were given to the target.
    inputs: u64,
    a_second: u64,
    /// Pieces of code that were reached by what there was, and in the end.
    reached: (u64, u64),
    /// Inputs that are worth keeping.
    corpus: u64,
    peak_mib: u64,
    input: Option<String>,
    problem: Vec<String>,
}

/// The most lines that are told of a problem.
const PROBLEM_LINES_MAX: usize = 12;

impl Report {
    /// Reads what a run has printed.
    pub fn read(said: &str) -> Self {
        let mut report = Self::default();
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        for line in said.lines() {
            if let Some(stat) = line.strip_prefix("stat::") {
                let (name, value) = stat.split_once(':').unwrap_or((stat, ""));
                match name {
                    "number_of_executed_units" => report.inputs = number(Some(value)),
                    "average_exec_per_sec" => report.a_second = number(Some(value)),
                    "peak_rss_mb" => report.peak_mib = number(Some(value)),
                    _ => {}
                }
            } else if line.starts_with('#') {
                let words: Vec<&str> = line.split_whitespace().collect();
                let after = |name: &str| {
                    number(
                        words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)?.split('/').next()),
                    )
                };
                let reached = after("cov:");
                match words.get(1) {
                    Some(&"INITED") => report.reached = (reached, reached),
                    _ => report.reached.1 = report.reached.1.max(reached),
                }
                report.corpus = after("corp:").max(report.corpus);
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                report.input = Some(path.to_owned());
            } else if report.problem.len() < PROBLEM_LINES_MAX && is_of_problem(line, !report.problem.is_empty()) {
                report.problem.push(line.to_owned());
            }
        }
        report
    }

    /// Whether the fuzzer saw which code is reached.
    pub fn is_guided(&self) -> bool {
        self.reached.1 > 0
    }

    /// The input that was kept because of a finding.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// What the target or the fuzzer said of a finding.
    pub fn problem(&self) -> String {
        self.problem.join("\n")
    }
}

/// A panic and what follows it, or a word of the fuzzer's own.
fn is_of_problem(line: &str, has_begun: bool) -> bool {
    let begins = line.contains("panicked at") || line.contains("ERROR: libFuzzer");
    begins || (has_begun && !line.trim().is_empty() && !line.starts_with("    #"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, a_second, reached: (first, last), corpus, peak_mib, .. } = self;
        write!(
            f,
            "{inputs} inputs, {a_second} a second, coverage {first} -> {last}, {corpus} in the corpus, {peak_mib} MiB"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "INFO: Seed: 1\n#3\tINITED cov: 40 ft: 50 corp: 3/30b exec/s: 0 rss: 30Mb\n\
        #9\tNEW    cov: 44 ft: 60 corp: 4/40b lim: 4 exec/s: 0 rss: 30Mb\n\
        #12345\tDONE   cov: 45 ft: 61 corp: 5/44b lim: 4 exec/s: 4115 rss: 31Mb\nDone 12345 runs in 3 second(s)\n\
        stat::number_of_executed_units: 12345\nstat::average_exec_per_sec:     4115\nstat::peak_rss_mb: 31\n";

    #[test]
    fn a_sound_run_is_told() {
        let report = Report::read(SOUND);
        assert_eq!(report.to_string(), "12345 inputs, 4115 a second, coverage 40 -> 45, 5 in the corpus, 31 MiB");
        assert!(report.is_guided() && report.input().is_none() && report.problem().is_empty());
    }

    #[test]
    fn a_finding_is_told_with_its_input() {
        let said = format!(
            "{SOUND}\nthread '<unnamed>' panicked at fuzz/src/hello.rs:7:9:\nit does not hold\n\
             ==1== ERROR: libFuzzer: deadly signal\n    #0 0x1\nartifact_prefix='x/'; Test unit written to x/crash-1\n"
        );
        let report = Report::read(&said);
        assert_eq!(report.input(), Some("x/crash-1"));
        assert!(report.problem().starts_with("thread") && report.problem().contains("it does not hold"), "{report:?}");
        assert!(!report.problem().contains("#0"));
    }

    #[test]
    fn a_program_without_instrumentation_is_not_guided() {
        assert!(!Report::read("#2\tINITED exec/s: 0 rss: 30Mb\n#9\tDONE corp: 1/1b\n").is_guided());
    }
}
