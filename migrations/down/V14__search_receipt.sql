DROP VIEW wall.search_receipt;
DROP TABLE casebook.search_receipt;
