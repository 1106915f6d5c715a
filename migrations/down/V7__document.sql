DROP VIEW wall.chunk, wall.analysis, wall.document;
DROP TABLE casebook.chunk, casebook.analysis, casebook.document;
