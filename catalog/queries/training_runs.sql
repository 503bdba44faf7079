-- What was trained, or is training now: the last point of each curve, what is known of the SAE, how the run ended.
-- A run that is still going has points and no row in `run` yet: its run_state is null.
-- params: n int = 100
-- grain: one row per artifact that has a curve, the newest first
with points as materialized (
    from train_progress
),
last_point as (
    select *, count(*) over (partition by fingerprint) as n_points
    from points
    qualify row_number() over (partition by fingerprint order by created_at desc nulls last, step desc) = 1
),
plan as (
    select p.fingerprint, any_value(r.config) as config
    from (select distinct fingerprint, run_id from points) p join run r using (run_id)
    where r.config is not null
    group by all
),
published as (
    from sae qualify row_number() over (partition by fingerprint order by sae_id) = 1
)
select p.fingerprint, s.sae_id, s.architecture, s.k, s.sparsity_weight, s.n_features, plan.config, p.run_id,
       r.state as run_state, p.n_points, p.step, p.n_tokens, p.loss, p.fvu, p.l0, p.dead_share,
       p.learning_rate, p.tokens_per_second, p.created_at as last_at
from last_point p left join plan using (fingerprint)
left join published s on s.fingerprint = p.fingerprint left join run r on r.run_id = p.run_id
order by last_at desc nulls last, p.fingerprint
limit $n
