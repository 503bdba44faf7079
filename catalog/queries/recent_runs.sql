-- What was done lately: steps with how they ended, how long they took, and why they failed.
-- params: n int = 30
-- grain: one row per execution of a step
select run_id, step, flow, state, started_at, ended_at,
       date_diff('millisecond', started_at, ended_at) / 1000 as seconds,
       n_tokens, tokens_per_second, peak_memory_bytes, device, host, author, error
from run
order by started_at desc nulls last, run_id
limit $n
