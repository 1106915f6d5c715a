DROP VIEW wall.training_example, wall.model_checkpoint;
DROP TABLE casebook.training_example, casebook.model_checkpoint;
