-- How did training go: the points of every curve, under the name of the SAE where it was published.
-- params: none
-- grain: one row per artifact, run and step
select p.fingerprint, s.sae_id, p.run_id, p.step, p.n_tokens, p.loss, p.fvu, p.l0, p.dead_share, p.tokens_per_second,
       p.created_at
from train_progress p left join sae s using (fingerprint)
order by p.fingerprint, p.step, p.created_at
