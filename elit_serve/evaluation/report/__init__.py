"""What an evaluation leaves for people to read: `page.write_page` makes a page of a folder's files, `table.as_markdown`
a table, `sheets` and `attention_maps` pictures. Knows no runs."""
