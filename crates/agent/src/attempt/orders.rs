//! What the lease loop wants of an attempt, and what its shim is told about it.
//!
//! Orders are a level and not a sequence: each replaces the one before, so nothing can be lost or pile up, and a shim that
//! is found again is simply told everything.

use holm_api::run_secrets::PublicKey;
use holm_domain::{BootMicros, run::Cancel};
use holm_shim::protocol::{Command, SecretsAnswer};

/// Why an attempt has no right to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The control plane said so.
    Stale,
    /// The time is over by this host's clock.
    Expired,
}

impl Lost {
    /// For a trace.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Stale => "lease_lost",
            Self::Expired => "lease_expired",
        }
    }
}

/// What the lease loop wants of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Until when the lease is held.
    pub(crate) deadline: BootMicros,
    /// Whether the command is to be ended, and how urgently.
    pub(crate) cancel: Option<Cancel>,
    /// Whether the right to go on is lost.
    pub(crate) lost: Option<Lost>,
    /// Whether the agent goes away and leaves the shim running.
    pub(crate) leave: bool,
}

impl Orders {
    /// To go on until `deadline`.
    pub(crate) fn until(deadline: BootMicros) -> Self {
        Self { deadline, cancel: None, lost: None, leave: false }
    }
}

/// What reporting wants of the shim, and what was fetched for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wants {
    /// Every log entry below this sequence is stored.
    pub(crate) acked: u64,
    /// Nothing that the command does can be kept any more.
    pub(crate) kill: bool,
    /// The answer to what its proxy asks for, while it does.
    pub(crate) secrets: Option<SecretsAnswer>,
}

/// What a shim was told so far over the present connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    deadline: BootMicros,
    cancel: Option<Cancel>,
    acked: u64,
    answered: Option<PublicKey>,
}

impl Told {
    /// What is to be said now.
    pub(crate) fn due(&mut self, fence: u64, orders: &Orders, wants: &Wants) -> Vec<Command> {
        let mut commands = Vec::new();
        if orders.deadline > self.deadline {
            self.deadline = orders.deadline;
            commands.push(Command::Extend { fence, deadline_us: orders.deadline });
        }
        let cancel = if wants.kill { Some(Cancel::Kill) } else { orders.cancel };
        if let Some(how) = cancel.filter(|_| cancel > self.cancel) {
            self.cancel = cancel;
            commands.push(Command::Cancel(how));
        }
        if wants.acked > self.acked {
            self.acked = wants.acked;
            commands.push(Command::Acked { next_seq: wants.acked });
        }
        if let Some(answer) = wants.secrets.as_ref().filter(|answer| self.answered != Some(answer.key())) {
            self.answered = Some(answer.key());
            commands.push(Command::Secrets(answer.clone()));
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use holm_api::run_secrets::Asking;

    use super::*;

    #[test]
    fn each_thing_is_said_once_and_all_again_to_a_shim_that_was_found() {
        let mut told = Told::default();
        let mut orders = Orders::until(BootMicros(5));
        let mut wants = Wants::default();
        let extend = Command::Extend { fence: 2, deadline_us: BootMicros(5) };
        assert_eq!(told.due(2, &orders, &wants), std::slice::from_ref(&extend));
        assert_eq!(told.due(2, &orders, &wants), []);
        orders.cancel = Some(Cancel::Terminate);
        wants.acked = 9;
        let more = [Command::Cancel(Cancel::Terminate), Command::Acked { next_seq: 9 }];
        assert_eq!(told.due(2, &orders, &wants), more);
        wants.kill = true;
        assert_eq!(told.due(2, &orders, &wants), [Command::Cancel(Cancel::Kill)]);
        orders.cancel = Some(Cancel::Kill);
        assert_eq!(told.due(2, &orders, &wants), []);
        let all = [extend.clone(), Command::Cancel(Cancel::Kill), Command::Acked { next_seq: 9 }];
        assert_eq!(Told::default().due(2, &orders, &wants), all);
        for _asked_again in 0..2 {
            let key = Asking::new().unwrap().key();
            let answer = SecretsAnswer::Refused { key, problem: "so it is".to_owned() };
            wants.secrets = Some(answer.clone());
            assert_eq!(told.due(2, &orders, &wants), [Command::Secrets(answer.clone())]);
            assert_eq!(told.due(2, &orders, &wants), []);
            assert_eq!(Told::default().due(2, &orders, &wants)[3..], [Command::Secrets(answer)]);
        }
    }
}
