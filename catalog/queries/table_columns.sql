-- What can be asked: every table and view with its columns.
-- params: none
-- grain: one row per column
select table_name, column_name, lower(data_type) as type
from information_schema.columns
order by table_name, ordinal_position
