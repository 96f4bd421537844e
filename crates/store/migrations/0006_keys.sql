-- The keys of the deployment, which belong to no org. What is sealed can be opened only with the root key, which is in no
-- database. One data key seals and one key signs: `seals` and `signs` are 1 there and nothing elsewhere, and unique. A data
-- key goes when nothing is sealed by it any more. Programs of before do not know these tables.
create table envelope_keys (
  id {text} primary key,
  sealed {bytes} not null,
  created_at bigint not null,
  seals bigint unique
);

create table signing_keys (
  id {text} primary key,
  public_key {bytes} not null,
  envelope_key {text} references envelope_keys (id),
  sealed {bytes},
  created_at bigint not null,
  retires_at bigint,
  withdrawn_at bigint,
  signs bigint unique
);
create index signing_keys_of_envelope on signing_keys (envelope_key);
