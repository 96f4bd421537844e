//! What can be done about the end of a run, where the reason of it says that.

use holm_api::runs::RunView;
use holm_domain::{
    limits::CHANGES_BYTES_MAX,
    run::{Reason, RootSource},
};
use holm_wire::guest_api::CHANGES_TOO_DEEP;

use crate::units::{show_bytes, show_duration};

/// One sentence without a full stop, if there is something to be done.
pub fn of(run: &RunView) -> Option<String> {
    let limits = &run.spec.limits;
    let peak = run.usage.and_then(|usage| usage.memory_peak_bytes);
    let more = |flag: &str, had: String| Some(format!("give it more with {flag} (it had {had})"));
    match run.outcome.as_ref()?.reason? {
        Reason::OutOfMemory if peak.is_some_and(|peak| peak < limits.memory_bytes) => {
            Some("the host needs more memory, or fewer runs at once".to_owned())
        }
        Reason::OutOfMemory => {
            let had = show_bytes(limits.memory_bytes);
            more("--memory", format!("{had}; files that it writes count as memory, too"))
        }
        Reason::DiskLimit => more("--disk", show_bytes(limits.disk_bytes)),
        Reason::LogLimit => more("--log-limit", show_bytes(limits.log_bytes)),
        Reason::PidsLimit => more("--pids", limits.pids.to_string()),
        Reason::ChangesLimit if is_too_deep(run) => {
            Some("let it nest fewer folders in its work dir, or delete them before the command ends".to_owned())
        }
        Reason::ChangesLimit if limits.changes_bytes_max() < CHANGES_BYTES_MAX => {
            let had = show_bytes(limits.disk_bytes);
            Some(format!(
                "delete what need not come back before the command ends, or give it more with --disk (it had {had})"
            ))
        }
        Reason::ChangesLimit => Some("delete what need not come back before the command ends".to_owned()),
        Reason::Timeout => more("--timeout", show_duration(limits.timeout())),
        // What is wrong with the spool is the disk of the host, or its room.
        Reason::SpoolFailed => {
            Some("the agent keeps output under its home: make room there, or look at its disk".to_owned())
        }
        Reason::HostPathRefused => {
            let flag = flag_of_path(run)?;
            Some(format!("{flag} takes a path of the host that executes the run"))
        }
        _ => None,
    }
}

/// Whether the changes are not kept because of how folders are nested, and not of how much they take.
fn is_too_deep(run: &RunView) -> bool {
    let message = run.outcome.as_ref().and_then(|outcome| outcome.message.as_deref());
    message.is_some_and(|message| message.contains(&format!(": {CHANGES_TOO_DEEP} ")))
}

/// The flag that gave the path with which the message begins.
fn flag_of_path(run: &RunView) -> Option<&'static str> {
    let message = run.outcome.as_ref()?.message.as_deref()?;
    let about = |path: &str| message.strip_prefix(path).is_some_and(|rest| rest.starts_with(':'));
    let of_root = match &run.spec.root {
        RootSource::Host {} => None,
        RootSource::Dir { path } | RootSource::Tar { path } => Some(path.as_str()),
    };
    if of_root.is_some_and(about) {
        return Some("--image");
    }
    if run.spec.work_dir.as_ref().is_some_and(|dir| about(&dir.source)) {
        return Some("--dir");
    }
    run.spec.mounts.iter().any(|mount| about(&mount.source)).then_some("--mount")
}

#[cfg(test)]
mod tests {
    use holm_domain::{
        OrgId, ProjectId, RunId, TokenId, UnixMicros,
        limits::LeaseConfig,
        run::{Admission, Mount, Outcome, RunSpec, Usage, WorkDir, admit},
    };

    use super::*;

    fn ended(reason: Reason, usage: Option<Usage>) -> RunView {
        let id = uuid::Uuid::from_u128(1);
        let admission = Admission {
            id: RunId::from_uuid(id),
            org: OrgId::from_uuid(id),
            project: ProjectId::from_uuid(id),
            created_by: TokenId::from_uuid(id),
        };
        let mut run = admit(admission, RunSpec::new(["x"]), UnixMicros(0), &LeaseConfig::default()).run;
        run.outcome = Some(Outcome::failed(reason, "it failed"));
        run.usage = usage;
        run.into()
    }

    #[test]
    fn each_limit_has_its_flag() {
        let table = [
            (Reason::OutOfMemory, "--memory (it had 1 GiB; files"),
            (Reason::DiskLimit, "--disk (it had 1 GiB)"),
            (Reason::LogLimit, "--log-limit (it had 1 GiB)"),
            (Reason::PidsLimit, "--pids (it had 1024)"),
            (Reason::ChangesLimit, "--disk (it had 1 GiB)"),
            (Reason::Timeout, "--timeout (it had 1 h 0 min)"),
        ];
        for (reason, words) in table {
            let advice = of(&ended(reason, None)).unwrap();
            assert!(advice.contains(words), "{advice}");
        }
        assert_eq!(of(&ended(Reason::CommandFailed, None)), None);
        assert!(of(&ended(Reason::SpoolFailed, None)).unwrap().contains("make room"));
    }

    #[test]
    fn more_disk_does_not_help_where_changes_are_at_their_most() {
        let mut run = ended(Reason::ChangesLimit, None);
        run.spec.limits.disk_bytes = CHANGES_BYTES_MAX;
        let advice = of(&run).unwrap();
        assert!(advice.contains("delete what") && !advice.contains("--disk"), "{advice}");
    }

    #[test]
    fn more_disk_does_not_help_where_folders_are_too_deep() {
        let mut run = ended(Reason::ChangesLimit, None);
        run.outcome = Some(Outcome::failed(Reason::ChangesLimit, format!("not kept: {CHANGES_TOO_DEEP} 256")));
        let advice = of(&run).unwrap();
        assert!(advice.contains("nest fewer") && !advice.contains("--disk"), "{advice}");
    }

    #[test]
    fn a_path_is_traced_to_its_flag() {
        let mut run = ended(Reason::HostPathRefused, None);
        run.spec.work_dir = Some(WorkDir { source: "/a".to_owned(), keep_changes: false });
        run.spec.mounts = vec![Mount { source: "/a/b".to_owned(), target: "/x".to_owned(), read_only: true }];
        for (path, flag) in [("/a", Some("--dir")), ("/a/b", Some("--mount")), ("/c", None)] {
            run.outcome = Some(Outcome::failed(Reason::HostPathRefused, format!("{path}: it does not exist")));
            assert_eq!(of(&run).map(|advice| advice.split(' ').next().unwrap().to_owned()).as_deref(), flag);
        }
    }

    #[test]
    fn a_host_without_memory_is_not_helped_by_a_larger_limit() {
        let small = Usage { memory_peak_bytes: Some(1 << 20), ..Usage::default() };
        assert!(of(&ended(Reason::OutOfMemory, Some(small))).unwrap().contains("host"));
        let large = Usage { memory_peak_bytes: Some(1 << 30), ..Usage::default() };
        assert!(of(&ended(Reason::OutOfMemory, Some(large))).unwrap().contains("--memory"));
    }
}
