//! Why something did not leave a sandbox, or not whole.

use http::StatusCode;

/// Why a connection or a request was not made, or not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule names it.
    #[error("no rule allows it")]
    NotAllowed,
    /// A rule named it, and does not any more.
    #[error("the rule that allowed it was withdrawn")]
    Withdrawn,
    /// Its address stands for no name that is known.
    #[error("its address stands for no name any more")]
    Forgotten,
    /// The name has no address.
    #[error("its name has no address")]
    NoSuchName,
    /// The name servers do not say.
    #[error("the name servers give no answer")]
    NameServer,
    /// Its addresses may not be reached.
    #[error("it leads to an address that may not be reached ({0})")]
    Special(&'static str),
    /// Nobody answers there.
    #[error("nobody answers at its address")]
    Unreachable,
    /// It was made, and one side broke it off.
    #[error("it was broken off")]
    BrokenOff,
    /// It was open when the sandbox ended.
    #[error("the sandbox ended")]
    SandboxEnded,
    /// What the client asks for in its greeting is another name.
    #[error("the client asks for another name than the one it was connected by")]
    OtherName,
    /// What the client sends is no TLS, and begins as if it were or has to be.
    #[error("the client does not greet as a client of TLS does")]
    Malformed,
    /// It does not begin TLS with the sandbox's own authority.
    #[error("the client does not trust the certificate authority of its sandbox")]
    Distrusted,
    /// There is no certificate to speak TLS with.
    #[error("no certificate can be made for it")]
    NoCertificate,
    /// A request is for another host than its connection.
    #[error("the request is for another host than its connection")]
    OtherHost,
    /// A request may be read in more than one way.
    #[error("the request is malformed")]
    MalformedRequest,
    /// What is added to its requests is not there yet.
    #[error("the credentials of its host are not there yet")]
    NoCredential,
    /// A request bears a credential of its own where that must be ours.
    #[error("the request bears a credential of its own; the one of this host is added outside")]
    OwnCredential,
    /// A request has a method that may never be passed on.
    #[error("requests of this kind are not passed on")]
    Method,
    /// The certificate of the server is not trusted.
    #[error("the certificate of the server is not trusted")]
    Untrusted,
    /// The server speaks no TLS, or none that is spoken here.
    #[error("the server does not speak TLS")]
    NoTls,
    /// Somebody took too long.
    #[error("it took too long")]
    TooSlow,
    /// The answer of the server is none.
    #[error("the server broke off, or its answer cannot be understood")]
    BadAnswer,
    /// Its answers end again and again in what looks like the begin of a secret.
    #[error("answers were cut again and again where they look like the begin of a secret: somebody guesses it")]
    Guessed,
    /// The answer of the server is compressed, though it was asked not to be: nothing can be masked in it.
    #[error("the server compressed its answer, though it was asked not to: no secret could be masked in it")]
    EncodedAnswer,
}

impl Refusal {
    /// Its stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::Withdrawn => "withdrawn",
            Self::Forgotten => "forgotten_address",
            Self::NoSuchName => "no_such_name",
            Self::NameServer => "name_server_failed",
            Self::Special(_) => "special_address",
            Self::Unreachable => "unreachable",
            Self::BrokenOff => "broken_off",
            Self::SandboxEnded => "sandbox_ended",
            Self::OtherName => "other_name",
            Self::Malformed => "malformed_greeting",
            Self::Distrusted => "authority_not_trusted",
            Self::NoCertificate => "no_certificate",
            Self::OtherHost => "other_host",
            Self::MalformedRequest => "malformed_request",
            Self::NoCredential => "no_credential",
            Self::OwnCredential => "own_credential",
            Self::Method => "method_never_allowed",
            Self::Untrusted => "server_not_trusted",
            Self::NoTls => "server_without_tls",
            Self::TooSlow => "too_slow",
            Self::BadAnswer => "bad_answer",
            Self::Guessed => "guessed",
            Self::EncodedAnswer => "encoded_answer",
        }
    }

    /// Whether it is worth telling: a connection that was broken off, or was open at the end, came to be.
    pub const fn is_told(self) -> bool {
        !matches!(self, Self::BrokenOff | Self::SandboxEnded)
    }

    /// With which status a request is answered for which it is the reason (RFC 9110, section 15).
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NotAllowed | Self::Withdrawn | Self::OwnCredential => StatusCode::FORBIDDEN,
            Self::MalformedRequest | Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::OtherHost | Self::OtherName => StatusCode::MISDIRECTED_REQUEST,
            Self::TooSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::SandboxEnded | Self::NoCertificate | Self::NoCredential => StatusCode::SERVICE_UNAVAILABLE,
            Self::Forgotten
            | Self::NoSuchName
            | Self::NameServer
            | Self::Special(_)
            | Self::Unreachable
            | Self::BrokenOff
            | Self::Guessed
            | Self::EncodedAnswer
            | Self::Distrusted
            | Self::Untrusted
            | Self::NoTls
            | Self::BadAnswer => StatusCode::BAD_GATEWAY,
        }
    }
}
