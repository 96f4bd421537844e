-- Join tokens, each of which enrols the key of one agent, and these keys. They stand beside the other tokens and not among
-- them: a program of before this step refuses a row with a role that it does not know, and with it the list of the org. It
-- knows neither table, so it hears no agent that speaks with a key.
create table join_tokens (
  id {text} primary key,
  org {text} not null references orgs (id),
  name {text} not null,
  hash {bytes} not null unique,
  created_at bigint not null,
  expires_at bigint not null,
  revoked_at bigint,
  used_at bigint,
  used_by {text},
  used_key {bytes}
);
create index join_tokens_of_org on join_tokens (org, id);

create table host_keys (
  agent {text} primary key,
  org {text} not null references orgs (id),
  public_key {bytes} not null,
  join_token {text} not null,
  enrolled_at bigint not null,
  revoked_at bigint
);
create index host_keys_of_org on host_keys (org, agent);
