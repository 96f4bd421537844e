//! The command line: names, flags, help texts. What is done with them is in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holm_domain::{KeyId, RunId, TokenId};

use crate::commands;

/// Runs work that you do not trust in sealed sandboxes, on hosts that you own.
#[derive(Debug, Parser)]
#[command(name = "holm", version, propagate_version = true, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "\
Examples:
  holm run echo hello                  run a command on an island and see its output
  holm run --dir . --write-back make   build this directory, and copy the changes back
  holm run -d -m 512m --timeout 10m --dir . ./job.sh
  holm ps -a                           runs of today and before
  holm logs -f RUN                     follow the output of a run

Without a server in flags, environment or configuration, holm starts one of its own in the
background and ends it after ten idle minutes (`holm down` ends it now).")]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What applies to every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The server: `https://HOST[:PORT]`, `http://…` or `unix:/PATH` [env: HOLM_SERVER]
    #[arg(long, global = true, value_name = "URL", conflicts_with = "context")]
    pub server: Option<String>,
    /// The context of the configuration to use [env: HOLM_CONTEXT]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The file with the token [env: HOLM_TOKEN_FILE, or HOLM_TOKEN with the token itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The configuration file [env: HOLM_CONFIG] [default: ~/.config/holm/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where a server of this machine keeps its data [env: HOLM_HOME]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Record runs, servers and agents: the collector to which spans are sent, by OTLP over HTTP [env: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, global = true, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a sandbox of its own
    Run(Box<commands::run::RunArgs>),
    /// List runs
    #[command(visible_alias = "ls")]
    Ps(commands::ps::PsArgs),
    /// Show what goes on, again and again
    Top(commands::top::TopArgs),
    /// Show one run, or several
    #[command(visible_alias = "inspect")]
    Show {
        /// The runs
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<RunId>,
        /// Show what they reached instead, and what they were refused: each connection and each request that is seen
        #[arg(long)]
        egress: bool,
    },
    /// Show the output of a run
    Logs(commands::logs::LogsArgs),
    /// Show what happened to a run
    Events {
        /// The run
        #[arg(value_name = "RUN")]
        run: RunId,
        /// Go on until the run has ended
        #[arg(short, long)]
        follow: bool,
    },
    /// Ask runs to end
    #[command(visible_alias = "stop")]
    Cancel {
        /// The runs
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<RunId>,
        /// Kill at once instead of asking first (SIGTERM, and ten seconds later SIGKILL)
        #[arg(short, long)]
        kill: bool,
    },
    /// Forget runs that have ended, with their output
    Rm {
        /// The runs
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<RunId>,
    },
    /// List the hosts and what they can do; say which take new runs, and take hosts in
    Hosts {
        /// What to do with a host; without it they are listed
        #[command(subcommand)]
        command: Option<Hosts>,
    },
    /// Make, list and revoke API tokens
    #[command(subcommand)]
    Token(Token),
    /// Keep, replace, list and remove secrets of the org and of its projects
    #[command(subcommand)]
    Secret(Secret),
    /// Show what was done in the org and by whom, and verify that nothing of it was changed
    Audit(commands::audit::AuditArgs),
    /// List, rotate and withdraw the keys by which servers sign tokens
    #[command(subcommand)]
    Keys(Keys),
    /// Look at what an org may have and do at most, and set it
    #[command(subcommand)]
    Org(Org),
    /// Share hosts of the default org with others
    #[command(subcommand)]
    Pools(Pools),
    /// Keep a server and a token for it as a context
    Login(commands::login::LoginArgs),
    /// List, choose and remove contexts
    #[command(subcommand)]
    Context(Context),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say what this host can do, and what to do about the rest
    Doctor,
    /// Start server and agent in one process, with everything in one directory
    Up(Box<crate::serve::up::UpArgs>),
    /// End the server that `holm up` or `holm run` started here
    Down(commands::down::DownArgs),
    /// Start a server only
    Server(Box<crate::serve::server::ServerArgs>),
    /// Start an agent only
    Agent(Box<crate::serve::agent::AgentArgs>),
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  holm completion bash > /etc/bash_completion.d/holm
  holm completion zsh  > ~/.zfunc/_holm
  holm completion fish > ~/.config/fish/completions/holm.fish")]
    Completion {
        /// The shell
        #[arg(value_parser = ["bash", "zsh", "fish"])]
        shell: String,
    },
    /// Write manual pages, one for each command; without DIR, print that of `holm`
    #[command(hide = true)]
    Man {
        /// The folder, such as /usr/local/share/man/man1
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Print all commands as one page of Markdown instead
        #[arg(long, conflicts_with = "dir")]
        markdown: bool,
    },
    /// Print the OpenAPI document
    #[command(hide = true)]
    Openapi,
}

/// What to do with a host.
#[derive(Debug, Subcommand)]
pub enum Hosts {
    /// Have a host take no new runs; those that it has go on
    Cordon {
        /// The host: its name or its id
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Have a host take new runs again
    Uncordon {
        /// The host: its name or its id
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Cordon a host and wait until its runs have ended
    Drain(commands::hosts::drain::DrainArgs),
    /// Make a token with which one host enrols, once, and print its secret, this once
    Join(commands::hosts::join::JoinArgs),
    /// List join tokens, and which hosts they have enrolled
    Joins,
    /// Have a host not be heard any more: its key is refused at once, and its runs go back to the queue
    Revoke {
        /// The host, by its name or its id; or a join token that is not used yet, by its id
        #[arg(value_name = "HOST")]
        host: String,
    },
}

/// What to do with orgs.
#[derive(Debug, Subcommand)]
pub enum Org {
    /// Make an org and print the secret of its first token, this once; for admins of the default org
    #[command(after_help = "\
Examples:
  (umask 77; holm org create acme > acme.token)")]
    Create {
        /// Its name: small letters, digits and hyphens
        #[arg(value_name = "NAME", value_parser = commands::org::name)]
        name: String,
    },
    /// List orgs; for admins of the default org
    Ls,
    /// The limits of an org
    #[command(subcommand)]
    Limits(OrgLimits),
}

/// What to do with the limits of an org.
#[derive(Debug, Subcommand)]
pub enum OrgLimits {
    /// Show the limits of an org, and how many of its runs are running
    Show {
        /// The org: its name or its id [default: that of the token]
        #[arg(value_name = "ORG", value_parser = commands::org::name)]
        org: Option<String>,
    },
    /// Set limits of an org; for admins of the default org
    #[command(after_help = "\
Examples:
  holm org limits set default runs_running_max=200 submits_per_minute=6000
  holm org limits set default submits_per_minute=default")]
    Set {
        /// The org: its name or its id
        #[arg(value_name = "ORG", value_parser = commands::org::name)]
        org: String,
        /// What to set: a number, or `default` for what the servers are told
        #[arg(required = true, value_name = "LIMIT=VALUE", value_parser = commands::org::limit)]
        limits: Vec<(String, Option<u64>)>,
    },
}

/// What to do with pools of hosts.
#[derive(Debug, Subcommand)]
pub enum Pools {
    /// List pools, and the orgs that they serve
    Ls,
    /// Put a host of the default org into a pool
    #[command(after_help = "\
A host is in one pool at most. What it lends it lends to every org that its pool serves.")]
    Add {
        /// The pool; the first host, or the first org, makes it
        #[arg(value_name = "POOL", value_parser = commands::org::name)]
        pool: String,
        /// The host: its name or its id
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Take a host out of a pool: it takes nothing new of other orgs any more
    Remove {
        /// The pool
        #[arg(value_name = "POOL", value_parser = commands::org::name)]
        pool: String,
        /// The host: its name or its id
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Have the hosts of a pool execute runs of another org as well
    #[command(after_help = "\
Examples:
  holm pools add ci build-1               the host `build-1` of the default org is in the pool `ci`
  holm pools share ci acme                from now on it executes runs of the org `acme` as well

Share only once every server on the database is of a version that has this command: an older one
holds the leases of shared runs for lost.")]
    Share {
        /// The pool
        #[arg(value_name = "POOL", value_parser = commands::org::name)]
        pool: String,
        /// The org: its name or its id
        #[arg(value_name = "ORG", value_parser = commands::org::name)]
        org: String,
    },
    /// Have them take nothing new of it any more; what it has there goes on
    Unshare {
        /// The pool
        #[arg(value_name = "POOL", value_parser = commands::org::name)]
        pool: String,
        /// The org: its name or its id
        #[arg(value_name = "ORG", value_parser = commands::org::name)]
        org: String,
    },
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and print its secret, this once
    Create(commands::token::create::CreateArgs),
    /// List tokens
    Ls,
    /// Take tokens out of use
    Revoke {
        /// The tokens
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<TokenId>,
    },
}

/// What to do with secrets.
#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Keep a new secret
    Set(commands::secret::set::SetArgs),
    /// Give a secret its next value and print its new version
    Rotate(commands::secret::rotate::RotateArgs),
    /// Say to where a secret may be brought; its value stays
    Bind(commands::secret::bind::BindArgs),
    /// List secrets, without their values
    Ls,
    /// Remove a secret
    Rm(commands::secret::rm::RmArgs),
}

/// What to do with signing keys.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List keys, and until when what they signed is good
    Ls,
    /// Have a new key sign; what was signed before is good until it expires
    Rotate(commands::keys::rotate::RotateArgs),
    /// Have what keys signed be refused, everywhere within a second
    Withdraw {
        /// The keys
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<KeyId>,
    },
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum Context {
    /// List contexts
    Ls,
    /// Choose the context that is used from now on; `local` is the server of this machine
    Use {
        /// Its name
        name: String,
    },
    /// Remove a context
    Rm {
        /// Its name
        name: String,
    },
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Find contradictions and services that cannot be reached
    Check {
        /// Look at files and settings only, and reach for no service
        #[arg(long)]
        offline: bool,
    },
}
