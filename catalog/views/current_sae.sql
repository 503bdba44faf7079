-- The current version of each family: the highest one in the snapshot.
-- grain: one row per family
create view current_sae as
select * from sae qualify row_number() over (partition by family order by version desc) = 1;
