//! What every command has: settings, a way to print, and a client once it is asked for.

use std::time::Duration;

use holm_api::client::{Client, ClientError};

use crate::{
    config::{Config, Target},
    home::Home,
    local,
    output::Output,
};

/// How long a command waits where a rate of the org is used up.
const LIMITED_PATIENCE: Duration = Duration::from_secs(120);

/// What every command has.
pub struct Session {
    /// The settings.
    pub config: Config,
    /// The way to print.
    pub output: Output,
}

impl Session {
    /// The home of this machine's server.
    pub fn home(&self) -> Home {
        Home(self.config.home.value.clone())
    }

    /// A client of the server that is meant; the one of this machine is started if it does not run.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let client = match self.config.target()? {
            Target::Local => local::connect_or_start(&self.home()).await?,
            Target::Named { endpoint, token } => Client::new(endpoint, token.value)?,
        };
        let output = self.output;
        Ok(client.waiting(LIMITED_PATIENCE, move |error: &ClientError| output.note(format!("{error}; waiting"))))
    }
}
