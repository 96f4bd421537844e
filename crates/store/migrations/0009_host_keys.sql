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
-- Those that may still enrol somebody, which are counted.
create index join_tokens_open on join_tokens (org, expires_at) where used_at is null and revoked_at is null;

-- Each key that was ever enrolled stays, so that none enrols twice, for whichever agent. `current_of` is the agent in the row of
-- its newest key, and nothing elsewhere; so an agent has one that counts.
create table host_keys (
  public_key {bytes} primary key,
  agent {text} not null,
  current_of {text} unique,
  org {text} not null references orgs (id),
  join_token {text} not null,
  enrolled_at bigint not null,
  revoked_at bigint
);

-- A row an agent, which whoever enrols or registers it keeps locked until that is over: what one of them has read of the other
-- is so.
create table host_locks (
  agent {text} primary key
);
