DROP VIEW wall.vector_space;
DROP TABLE casebook.vector_space;
