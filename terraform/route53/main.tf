# The records that a failover moves, and the right to move them. Terraform makes the records and
# never looks at their weights again: those are the controller's.

data "aws_route53_zone" "this" {
  name         = var.zone
  private_zone = false
}

data "aws_partition" "current" {}

data "dns_a_record_set" "name_server" {
  for_each = toset(data.aws_route53_zone.this.name_servers)
  host     = each.value
}

locals {
  # The controller writes the epoch here, in the same batch as the weights, and creates the record
  # with its first move. It is not a resource of this module on purpose.
  note = "_failover.${var.record}"
}

resource "aws_route53_record" "site" {
  for_each = var.sites

  zone_id        = data.aws_route53_zone.this.zone_id
  name           = var.record
  type           = var.record_type
  ttl            = var.ttl_seconds
  records        = [each.value]
  set_identifier = "${var.identifier_prefix}${each.key}"

  weighted_routing_policy {
    weight = each.key == var.first_active ? 100 : 0
  }

  lifecycle {
    # Or the next apply would undo a failover.
    ignore_changes = [weighted_routing_policy]

    precondition {
      condition     = var.record == var.zone ? var.record_type != "CNAME" : endswith(var.record, ".${var.zone}")
      error_message = "`record` must lie in `zone`, and the zone itself cannot be a `CNAME`."
    }

    # All weights zero would send users to both sites.
    precondition {
      condition     = contains(keys(var.sites), var.first_active)
      error_message = "`first_active` must be one of `sites`."
    }
  }
}

# Least privilege: these two names, these two types, delete and create, in this zone. The
# controller never upserts: a batch that deletes what was read and creates what is wanted is its
# compare-and-swap.
data "aws_iam_policy_document" "controller" {
  statement {
    sid       = "MoveTheService"
    actions   = ["route53:ChangeResourceRecordSets"]
    resources = [data.aws_route53_zone.this.arn]

    condition {
      test     = "ForAllValues:StringEquals"
      variable = "route53:ChangeResourceRecordSetsNormalizedRecordNames"
      values   = [var.record, local.note]
    }

    condition {
      test     = "ForAllValues:StringEquals"
      variable = "route53:ChangeResourceRecordSetsRecordTypes"
      values   = [var.record_type, "TXT"]
    }

    condition {
      test     = "ForAllValues:StringEquals"
      variable = "route53:ChangeResourceRecordSetsActions"
      values   = ["CREATE", "DELETE"]
    }
  }

  statement {
    sid       = "ReadTheZone"
    actions   = ["route53:ListResourceRecordSets"]
    resources = [data.aws_route53_zone.this.arn]
  }

  # A change has an id of its own and cannot be tied to a zone.
  statement {
    sid       = "FollowAChange"
    actions   = ["route53:GetChange"]
    resources = ["arn:${data.aws_partition.current.partition}:route53:::change/*"]
  }
}

resource "aws_iam_policy" "controller" {
  name        = "failover-${var.target_name}"
  description = "What the failover controller needs to move ${var.record}"
  policy      = data.aws_iam_policy_document.controller.json
}
