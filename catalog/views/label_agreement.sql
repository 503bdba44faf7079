-- Who labelled a feature, how many different answers there are, and whether they agree on safety.
-- grain: one row per labelled feature
create view label_agreement as
select sae_id, feature, count(*) as n_authors, count(distinct lower(text)) as n_texts,
       list(author order by created_at) as authors, min(safety) as safety_low, max(safety) as safety_high,
       case when count(*) = 1 then 'single'
            when count(distinct lower(text)) = 1 and min(safety) is not distinct from max(safety) then 'agreed'
            else 'disputed' end as agreement
from label where action <> 'reject' group by all;
