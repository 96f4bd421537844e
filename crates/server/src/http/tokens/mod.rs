//! API tokens.

pub mod create;
pub mod list;
pub mod revoke;
pub mod whoami;

use holm_api::tokens::TokenView;
use holm_domain::access::Token;

/// A token as it is shown.
pub(super) fn view(token: Token) -> TokenView {
    TokenView {
        id: token.id,
        name: token.name,
        role: token.role,
        created_at: token.created_at,
        expires_at: token.expires_at,
        revoked_at: token.revoked_at,
    }
}
