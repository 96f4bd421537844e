//! Checks that are taken away, each of which some attack notices: its test says that something came through.

use std::panic::catch_unwind;

use holm_e2e::{host::is_root, world::without};

use super::{credentials, http1, names, tls};

/// Without `check` the test of an attack fails, and says what came through.
#[track_caller]
fn notices(check: &'static str, attack: fn(), says: &str) {
    let panic = without(check, || catch_unwind(attack)).expect_err("it notices");
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    assert!(text.is_some_and(|text| text.contains(says)), "{text:?}");
}

macro_rules! unchecked {
    ($($name:ident = $check:literal, $attack:path, $says:literal;)+) => {
        $(#[test]
        fn $name() {
            // The store has no part in it, nor has the user, but that some of them need the other's network.
            if is_root() && std::env::var("HOLM_TEST_STORE").is_ok_and(|store| store == "sqlite") {
                notices($check, $attack, $says);
            }
        })+
    };
}

unchecked! {
    the_name_in_a_greeting = "greeting", tls::e01_a_greeting_that_asks_for_another_name_is_refused, "200";
    the_host_of_a_request = "host", http1::e02_every_request_over_a_connection_names_its_host, "200";
    that_there_is_one_host = "one host", http1::e04_there_is_one_host_and_it_is_that_of_the_connection, "200";
    the_address_that_a_name_leads_to = "address", names::e10_the_host_is_not_reached_by_any_of_its_addresses, "left";
    the_rules_of_requests = "request", http1::h12_no_request_tunnels_or_reflects, "200";
    methods_that_reflect = "method", http1::h12_no_request_tunnels_or_reflects, "TRACE";
    fields_about_a_connection = "connection", http1::h05_what_is_about_a_connection_does_not_leave, "evil";
    where_a_credential_is_bound_to = "bound", credentials::c01_a_secret_is_brought_where_it_is_bound_to_and_nowhere_else, "bearer";
    the_credentials_of_a_client = "own", credentials::c03_no_request_is_made_for_somebody_elses_account, "evil";
    secrets_in_answers = "mask", credentials::c01_what_a_server_tells_of_a_secret_is_masked, "plain";
    answers_that_can_be_read = "readable", credentials::h14_an_answer_cannot_be_had_in_a_form_in_which_nothing_is_found, "range";
}
