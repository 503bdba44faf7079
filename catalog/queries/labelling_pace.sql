-- How fast does each person label, with how much effort, and how often do they accept the machine's explanation?
-- params: none
-- grain: one row per person and day
select author, created_at::date as day, count(*) as n, median(seconds) as p50_seconds,
       quantile_cont(seconds, 0.9) as p90_seconds, avg(keys + clicks) as presses,
       avg((action = 'accept')::int) as accept_rate
from label_event
where action in ('accept', 'edit', 'write', 'reject')
group by all
order by day desc, n desc, author
