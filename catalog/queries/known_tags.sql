-- Which tags do people use, the most used first?
-- params: n int = 40
-- grain: one row per tag
with used as (
    select unnest(tags) as tag from label
)
select tag, count(*) as n from used group by all order by n desc, tag limit $n
